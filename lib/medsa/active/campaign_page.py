"""A campaign as one HTML file that needs nothing else: curves, effort, areas, and who beats whom."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medsa.active.curves import Interval, Runs, areas, compare, curve, interval
from medsa.evaluation.page import STYLE

METRIC = "1 pt"
NAMES = {
    "1 pt": "Dice after one click",
    "3 pts": "Dice after three clicks",
    "noc85": "clicks to Dice 0.85",
    "noc90": "clicks to Dice 0.9",
}


def summed(runs: Runs, before: Mapping[str, float]) -> dict[str, Any]:
    """All figures of a campaign: areas, ends and clicks by strategy, and pairs."""
    table: dict[str, Any] = {}
    for name, seeds in runs.items():
        lasts = [rounds[-1] for rounds in seeds]
        table[name] = {
            "end": {metric: _told(interval([one["figures"][metric] for one in lasts])) for metric in NAMES},
            "first batch": _told(
                interval([rounds[min(1, len(rounds) - 1)]["clicks per study"] for rounds in seeds])
            ),
            "last batch": _told(interval([one["clicks per study"] for one in lasts])),
            "last batch, frozen": _told(interval([one["clicks per study, frozen"] for one in lasts])),
        }
    pairs = {}
    for over in ("studies", "clicks"):
        found = areas(runs, METRIC, over)
        for name, values in found.items():
            table[name][f"area over {over}"] = _told(interval(values))
        pairs[over] = [
            {
                "one": one.one,
                "other": one.other,
                **_told(one.difference),
                "p": _finite(one.p),
                "corrected": _finite(one.corrected),
            }
            for one in compare(found)
        ]
    return {"before": dict(before), "strategies": table, "pairs": pairs}


def better_than_random(summary: Mapping[str, Any], level: float = 0.05) -> list[str]:
    """The strategies whose area over studies is above random's by more than chance, after correction."""
    found = []
    for pair in summary["pairs"]["studies"]:
        names = {pair["one"]: pair["mean"], pair["other"]: -pair["mean"]}
        if "random" in names and pair["corrected"] is not None and pair["corrected"] < level:
            found += [name for name, gain in names.items() if name != "random" and gain > 0]
    return found


def page(runs: Runs, summary: Mapping[str, Any], said: Mapping[str, str]) -> str:
    """The page; `said` are lines on top of it, by name."""
    winners = better_than_random(summary)
    verdict = (
        f"Better than random beyond chance: {', '.join(winners)}."
        if winners
        else "No strategy is better than random beyond chance: take random."
    )
    parts = [
        _table([], [[name, html.escape(value)] for name, value in said.items()]),
        f"<p><b>{html.escape(verdict)}</b>",
        _picture(_curves(runs, summary["before"]), "Curves"),
        _picture(_effort(runs), "Effort"),
        f"<h2>Strategies</h2><p>Mean over seeds and 95 % interval; areas are of {NAMES[METRIC]}.",
        _strategies(summary["strategies"]),
        "<h2>Pairs</h2><p>Difference of the areas, paired by seed; p of the t test, and after Holm.",
        *(f"<h3>Over {over}</h3>{_pairs(pairs)}" for over, pairs in summary["pairs"].items() if pairs),
    ]
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>medsa campaign</title>'
        f"<style>{STYLE}</style>\n<h1>medsa campaign</h1>\n{chr(10).join(parts)}\n</html>\n"
    )


def _strategies(table: Mapping[str, Mapping[str, Any]]) -> str:
    columns = ("area over studies", "area over clicks", "first batch", "last batch", "last batch, frozen")
    head = [
        "", "area over studies", "area over clicks", "clicks a study, first batch", "last batch",
        "last batch, without learning", *(f"{name}, at the end" for name in NAMES.values()),
    ]  # fmt: skip
    rows = [
        [
            html.escape(name),
            *(_cell(values[column]) for column in columns),
            *(_cell(values["end"][metric]) for metric in NAMES),
        ]
        for name, values in table.items()
    ]
    return _table(head, rows)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            f"{html.escape(p['one'])} - {html.escape(p['other'])}",
            _cell(p, sign=True),
            _p(p["p"]),
            _p(p["corrected"]),
        ]
        for p in pairs
    ]
    return _table(["", "difference", "p", "after Holm"], rows)


def _told(value: Interval) -> dict[str, float | None]:
    bounds = {"mean": value.mean, "low": value.low, "high": value.high}
    return {name: _finite(round(one, 5)) for name, one in bounds.items()}


def _finite(value: float) -> float | None:
    """None, as JSON has it, where there is no number."""
    return value if math.isfinite(value) else None


def _cell(value: Mapping[str, Any], *, sign: bool = False) -> str:
    form = "+.3f" if sign else ".3f"
    if value["low"] is None:
        return f"{value['mean']:{form}}"
    return f"{value['mean']:{form}} <small>{value['low']:{form}} to {value['high']:{form}}</small>"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{name}</th>" for name in head)
    lines = [f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}" for row in rows]
    return f"<table>{f'<tr>{top}' if head else ''}{''.join(lines)}</table>"


def _curves(runs: Runs, before: Mapping[str, float]) -> Figure:
    figure = Figure(figsize=(12.5, 4), layout="constrained")
    for axes, over in zip(figure.subplots(1, 2, sharey=True), ("studies", "clicks"), strict=True):
        for name, seeds in runs.items():
            _band(axes, [curve(rounds, METRIC, over) for rounds in seeds], name)
        axes.axhline(before[METRIC], color="grey", linestyle=":", label="no learning")
        axes.set(xlabel=f"{over} labelled" if over == "studies" else f"{over} made")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(NAMES[METRIC])
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _band(axes: Axes, curves: Sequence[tuple[Any, Any]], name: str) -> None:
    """Mean over seeds, and between the lowest and the highest a band."""
    low, high = max(spent[0] for spent, _ in curves), min(spent[-1] for spent, _ in curves)
    at = np.unique(np.clip(np.concatenate([spent for spent, _ in curves]), low, max(low, high)))
    values = np.stack([np.interp(at, spent, found) for spent, found in curves])
    (line,) = axes.plot(at, values.mean(axis=0), marker="." if len(at) < 30 else "", label=name)
    axes.fill_between(
        at, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.07, linewidth=0
    )


def _effort(runs: Runs) -> Figure:
    """Clicks a study in each batch, with the model that learns and with the one that does not."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, seeds in runs.items():
        rounds = range(1, 1 + min(map(len, seeds)))
        for key, style in (("clicks per study", "-"), ("clicks per study, frozen", ":")):
            means = [float(np.mean([lines[n - 1][key] for lines in seeds])) for n in rounds]
            colour = axes.lines[-1].get_color() if style == ":" else None
            axes.plot(rounds, means, style, color=colour, marker=".", label=name if style == "-" else None)
    axes.set(xlabel="batch (dotted: the same studies without learning)", ylabel="clicks a study to Dice 0.9")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize="small")
    return figure


def _picture(figure: Figure, title: str) -> str:
    figure.savefig(buffer := BytesIO(), format="png", dpi=140, metadata={"Software": None})
    content = base64.b64encode(buffer.getvalue()).decode()
    return f'<p><img alt="{title}" src="data:image/png;base64,{content}">'
