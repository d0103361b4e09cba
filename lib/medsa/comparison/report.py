"""A comparison as tables, in Markdown and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from medsa.comparison.figures import AVERAGE, Figures, prompts_of
from medsa.evaluation.evaluate import span
from medsa.evaluation.metrics import METRICS
from medsa.evaluation.page import NAMES, PIXELS, STYLE


@dataclass(frozen=True)
class Table:
    """Rows of plain text below `head`; the first column names them."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(figures: Figures) -> list[Table]:
    """All tables of a report, those that would be empty left out."""
    found = [
        _dice(figures),
        _costs(figures),
        _seeds(figures),
        *_labels(figures),
        *_metrics(figures),
        _clicks(figures),
        _beside(figures),
    ]
    return [table for table in found if table.rows]


def _dice(figures: Figures) -> Table:
    prompts = prompts_of(figures)
    rows = [
        [line["name"], *(_mean(line["summary"], prompt, "dice", interval=True) for prompt in prompts)]
        for line in figures["entrants"]
    ]
    return Table("Dice by prompt (95 % of a bootstrap over patients)", ["", *map(said, prompts)], rows)


def _costs(figures: Figures) -> Table:
    rows = []
    for line in figures["entrants"]:
        encoding, answers = (
            line["ms"].get("encode"),
            [ms for name, ms in line["ms"].items() if name != "encode"],
        )
        rows.append(
            [
                line["name"],
                line["title"],
                line["backbone"],
                f"{line['trained']:,}",
                f"{100 * line['trained'] / line['total']:.2f} %",
                " ".join(str(count or "–") for count in line["studies"]),
                " ".join(map(str, line["steps"])),
                " ".join(f"{minutes:.1f}" for minutes in line["minutes"]),
                "–" if encoding is None else f"{encoding:.0f}",
                f"{max(answers):.0f}" if answers else "–",
            ]
        )
    head = [
        "",
        "method",
        "backbone",
        "trained",
        "of all",
        "studies",
        "steps",
        "minutes",
        "encoding, ms",
        "answer, ms",
    ]
    return Table("What it costs", head, rows)


def _seeds(figures: Figures) -> Table:
    """Dice of each training, where there are several."""
    prompts = prompts_of(figures)
    rows = [
        [
            line["name"],
            *(" ".join(f"{one[prompt]:.3f}" for one in line["seeds"] if prompt in one) for prompt in prompts),
        ]
        for line in figures["entrants"]
        if len(line["seeds"]) > 1
    ]
    return Table("Dice by seed", ["", *map(said, prompts)], rows)


def _labels(figures: Figures) -> Iterator[Table]:
    """Dice of each label, where there are several, for the prompts that say most."""
    if len(figures["labels"]) < 2:
        return
    for prompt in prompts_of(figures):
        rows = [
            [
                line["name"],
                *(_mean(line["labels"].get(label, {}), prompt, "dice") for label in figures["labels"]),
            ]
            for line in figures["entrants"]
            if prompt in line["summary"]
        ]
        yield Table(f"Dice by label, {said(prompt)}", ["", *figures["labels"]], rows)


def _metrics(figures: Figures) -> Iterator[Table]:
    prompts = prompts_of(figures)
    for metric in METRICS[1:]:
        rows = [
            [line["name"], *(_mean(line["summary"], prompt, metric) for prompt in prompts)]
            for line in figures["entrants"]
        ]
        yield Table(f"{NAMES[metric]}, by prompt", ["", *map(said, prompts)], rows)


def _clicks(figures: Figures) -> Table:
    """The area under the curve and the clicks needed, where clicks were asked for."""
    names = dict.fromkeys(name for line in figures["entrants"] for name in line["summary"].get("numbers", {}))
    words = {"auc": "mean Dice over clicks", "noc85": "clicks to 0.85", "noc90": "clicks to 0.90"}
    words["background"] = "Dice with a click on background"
    rows = [
        [line["name"], *(_number(line["summary"]["numbers"].get(name)) for name in names)]
        for line in figures["entrants"]
        if line["summary"].get("numbers")
    ]
    return Table("Clicks", ["", *(words.get(name, name) for name in names)], rows)


def _beside(figures: Figures) -> Table:
    """The paper's figures beside those found here, and those of methods that are not run here."""
    rows = []
    for line in figures["entrants"]:
        labels = {_plain(name): found for name, found in line["labels"].items()}
        rows += _paper_rows(line["name"], line["paper"], {AVERAGE: line["summary"], **labels})
    for name, paper in figures["others"].items():
        rows += _paper_rows(name, paper, None)
    return Table("The paper's figures beside ours", ["", "prompt", "label", "metric", "paper", "here"], rows)


def _plain(label: str) -> str:
    """A label's name, however it is written."""
    return re.sub(r"[\W_]+", " ", label.casefold()).strip()


def _paper_rows(name: str, paper: Figures, found: Figures | None) -> list[list[str]]:
    rows = []
    for prompt, labels in paper.items():
        for label, metrics in labels.items():
            for metric, value in metrics.items():
                ours = "not run" if found is None else _mean(found.get(_plain(label), {}), prompt, metric)
                shown = f"{value:.2f}" if metric == "hd95" else f"{value:.3f}"
                rows.append([name, said(prompt), label, NAMES[metric], shown, ours])
    return rows


def _mean(found: Figures, prompt: str, metric: str, *, interval: bool = False) -> str:
    value = found.get(prompt, {}).get(metric)
    if value is None:
        return "–"
    text = f"{value['mean']:.2f}" if metric == "hd95" else f"{value['mean']:.3f}"
    return f"{text} ({span(value)})" if interval else text


def _number(value: Mapping[str, float] | None) -> str:
    return "–" if value is None else f"{value['mean']:.3f}"


def said(prompt: str) -> str:
    """A prompt in words."""
    if prompt.isdigit():
        return f"{prompt} point{'s' if prompt != '1' else ''}"
    if prompt.startswith("box"):
        return f"box {prompt[3:]}".strip()
    return "no prompt"


def facts(figures: Figures) -> list[tuple[str, str]]:
    """How the figures were made."""
    asked, made, cases = figures["asked"], figures["made"], figures["cases"]
    what = "whole volumes" if asked["volumes"] else f"{asked['slices']} slices of each label and case"
    what += ", in slabs where a model has depth" if asked["slabs"] else ""
    size = f", input of {figures['image size']} pixels" if figures["image size"] else ""
    each = f"{figures['budget']} of training each, seeds: {figures['seeds']}"
    warm = figures["warm start"]
    return [
        ("paper", figures["paper"]),
        ("budget", each + (f"; begun with a shared one of {warm}" if warm else "")),
        ("settings", f"{figures['settings']}, from {figures['start']}{size}"),
        (
            "cases",
            f"{cases['training']} train; {cases['held out']} are held out and choose nothing",
        ),
        ("labels", ", ".join(figures["labels"])),
        ("asked", f"{asked['prompts']} on {what}, seeds: {asked['seeds']}"),
        ("first click", "at the deepest point" if asked["deepest"] else "anywhere in the object"),
        ("surface Dice", f"within {asked['tolerance']:g} mm{PIXELS}"),
        ("made", f"{made['when']}, medsa {made['medsa']}, torch {made['torch']}, {made['machine']}"),
        ("note", figures["note"]),
    ]


def as_markdown(figures: Figures) -> str:
    """The report as Markdown."""
    lines = [f"# {figures['title']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts(figures) if value]
    for table in tables(figures):
        lines += ["", f"## {table.title}", "", _line(table.head)]
        lines.append(_line(["---", *["---:"] * (len(table.head) - 1)]))
        lines += [_line(row) for row in table.rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def as_page(figures: Figures, pictures: Mapping[str, bytes]) -> str:
    """The report as a page; `pictures` are PNG by what they show."""
    listed = "".join(f"<li>{html.escape(f'{name}: {value}')}" for name, value in facts(figures) if value)
    parts = [f"<ul>{listed}</ul>"]
    first, *others = tables(figures)
    parts += [f"<h2>{html.escape(first.title)}</h2>", _html(first.head, first.rows)]
    for title, content in pictures.items():
        data = base64.b64encode(content).decode()
        name = html.escape(title, quote=True)
        parts.append(f'<h2>{name}</h2><p><img alt="{name}" src="data:image/png;base64,{data}">')
    for table in others:
        parts += [f"<h2>{html.escape(table.title)}</h2>", _html(table.head, table.rows)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{html.escape(figures['title'])}</title><style>{STYLE}</style>\n"
        f"<h1>{html.escape(figures['title'])}</h1>\n{body}\n</html>\n"
    )


def _html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return f"<table>{f'<tr>{top}</tr>' if head else ''}{''.join(lines)}</table>"
