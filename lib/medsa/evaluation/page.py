"""An evaluation as one HTML file that needs nothing else: tables, and Dice by prompt as a picture."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from medsa.evaluation.evaluate import span
from medsa.evaluation.metrics import METRICS
from medsa.evaluation.unasked import UNASKED

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #d0d7de; text-align: right }
th:first-child, td:first-child { text-align: left }
small { color: #57606a }
img { max-width: 100% }
"""
NAMES = {"dice": "Dice", "iou": "IoU", "hd95": "HD95, mm", "nsd": "surface Dice"}
PIXELS = "; where images know no size, as pictures do not, a pixel counts as one mm"


def page(figures: Mapping[str, Any]) -> str:
    """The page of what `medsa evaluate` writes as JSON."""
    model, protocol = figures["model"], figures["protocol"]
    what = "volumes" if protocol["slices"] is None else f"{protocol['slices']} slices of each label and case"
    if protocol.get("pixels"):
        what += f", small ones enlarged to {protocol['pixels']} pixels"
    first = "at the deepest point" if protocol["deepest"] else "anywhere in the object"
    said = {
        "backbone": model["backbone"]
        + (", by itself" if protocol.get("raw") else "")
        + (", not shown its masks" if protocol.get("afresh") else ""),
        "adapter": model["adapter"] or "none",
        "asked": f"{protocol['prompts']} on {what}, {protocol['cases']} cases, seeds: {protocol['seeds']}"
        + (
            f"; {without} have no object that is large enough" if (without := protocol.get("without")) else ""
        ),
        **({} if protocol["prompts"] == UNASKED else {"first click": first}),
        "surface Dice": f"within {protocol['tolerance']:g} mm{PIXELS}",
    }
    parts = [_table([], list(map(list, said.items()))), _picture(figures), _summary(figures["summary"])]
    for label, summary in figures["labels"].items():
        parts += [f"<h2>{html.escape(label)}</h2>", _summary(summary)]
    for control, summary in figures.get("controls", {}).items():
        parts += [f"<h2>control: {html.escape(control)}</h2>", _summary(summary)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>medsa evaluate</title>'
        f"<style>{STYLE}</style>\n<h1>medsa evaluate</h1>\n{body}\n</html>\n"
    )


def _summary(summary: Mapping[str, Any]) -> str:
    rows = [
        [name, *(_cell(values[metric]) for metric in METRICS), str(values["dice"]["n"])]
        for name, values in summary.items()
        if name != "numbers"
    ]
    numbers = [[name, _cell(value), str(value["n"])] for name, value in summary.get("numbers", {}).items()]
    return _table(["prompt", *NAMES.values(), "n"], rows) + _table(["", "mean", "n"], numbers)


def _cell(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} <small>{span(value)}</small>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already, but for the first of each row."""
    if not rows:
        return ""
    top = "".join(f"<th>{name}</th>" for name in head)
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in (html.escape(row[0]), *row[1:]))}" for row in rows]
    return f"<table>{f'<tr>{top}' if head else ''}{''.join(lines)}</table>"


def _picture(figures: Mapping[str, Any]) -> str:
    """Mean Dice by prompt with its interval, a line for each label."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    summaries = {"all": figures["summary"], **(figures["labels"] if len(figures["labels"]) > 1 else {})}
    for place, (label, summary) in enumerate(summaries.items()):
        prompts = [name for name in summary if name != "numbers"]
        values = [summary[name]["dice"] for name in prompts]
        means = [value["mean"] for value in values]
        spans = [
            [value["mean"] - value["low"] for value in values],
            [value["high"] - value["mean"] for value in values],
        ]
        moved = [number + 0.08 * (place - (len(summaries) - 1) / 2) for number in range(len(prompts))]
        axes.errorbar(moved, means, yerr=spans, fmt="o", capsize=3, label=label)
        axes.set_xticks(range(len(prompts)), prompts)
    axes.set(ylim=(0, 1), ylabel="Dice", xlabel="prompt (clicks, or a box)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="Dice by prompt" src="data:image/png;base64,{content}">'
