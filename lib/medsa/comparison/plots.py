"""A comparison's plots, as PNG: Dice over clicks, boxes, and against parameters and time."""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from medsa.comparison.figures import Figures, prompts_of
from medsa.comparison.report import said
from medsa.evaluation.unasked import UNASKED

APART = 0.5
"""Part of the way between two prompts that the entrants' marks at one of them are spread over."""


def plots(figures: Figures) -> dict[str, bytes]:
    """PNG by title, those left out for which nothing was asked."""
    prompts = prompts_of(figures)
    clicks = [name for name in prompts if name.isdigit()]
    boxes = [name for name in prompts if name.startswith("box")]
    found = {}
    if clicks:
        found["Dice over clicks"] = _drawn(lambda axes: _curves(axes, figures, clicks))
    if boxes:
        found["Dice by the quality of the box"] = _drawn(lambda axes: _curves(axes, figures, boxes))
    prompt = next(iter([*clicks, *boxes]), UNASKED)
    found["Parameters against Dice"] = _drawn(lambda axes: _against(axes, figures, prompt, _trained))
    found["Time against Dice"] = _drawn(lambda axes: _against(axes, figures, prompt, _milliseconds))
    return found


def png(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    figure.savefig(buffer := BytesIO(), format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _drawn(draw: Callable[[Axes], None]) -> bytes:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.3)
    axes.set(ylim=(max(0.0, math.floor(10 * axes.get_ylim()[0]) / 10), 1), ylabel="Dice")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return png(figure)


def _colour(place: int) -> Any:
    return colormaps["tab20"]((2 * place) % 20 + (place // 10) % 2)


def _curves(axes: Axes, figures: Figures, prompts: list[str]) -> None:
    """A line for each entrant over `prompts`, side by side; those that take none are level ones."""
    entrants = figures["entrants"]
    for place, line in enumerate(entrants):
        aside = ((place + 0.5) / len(entrants) - 0.5) * APART
        known = [
            (at + aside, line["summary"][name]["dice"])
            for at, name in enumerate(prompts)
            if name in line["summary"]
        ]
        if known:
            at, values = zip(*known, strict=True)
            axes.errorbar(
                at, [value["mean"] for value in values], yerr=np.transpose(list(map(_span, values))),
                fmt="o-", color=_colour(place), markersize=4, linewidth=0.8, elinewidth=1, label=line["name"],
            )  # fmt: skip
        elif UNASKED in line["summary"]:
            mean = line["summary"][UNASKED]["dice"]["mean"]
            axes.axhline(mean, linestyle="--", color=_colour(place), label=f"{line['name']} (no prompt)")
    axes.set_xticks(range(len(prompts)), list(map(said, prompts)))


def _span(dice: Figures) -> tuple[float, float]:
    """How far the interval reaches below the mean, and above; rounding may leave an end on the other side."""
    return max(0.0, dice["mean"] - dice["low"]), max(0.0, dice["high"] - dice["mean"])


def _against(axes: Axes, figures: Figures, prompt: str, value: Callable[[Figures, str], float]) -> None:
    """A point for each entrant: what it costs, and Dice with `prompt`, or with none where it takes none."""
    for place, line in enumerate(figures["entrants"]):
        asked = prompt if prompt in line["summary"] else UNASKED
        if asked not in line["summary"]:
            continue
        dice = line["summary"][asked]["dice"]
        axes.errorbar(
            value(line, asked), dice["mean"], yerr=np.reshape(_span(dice), (2, 1)), capsize=3,
            fmt="s" if asked == UNASKED else "o", color=_colour(place),
            label=f"{line['name']}, {said(asked)}",
        )  # fmt: skip
    if value is _trained:
        axes.set_xscale("symlog", linthresh=1e4)
        axes.set(xlim=(-1e3, None), xlabel="parameters that learn")
    else:
        axes.set(xscale="log", xlabel="milliseconds of an answer, with its encoding")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())


def _trained(line: Figures, _prompt: str) -> float:
    return float(line["trained"])


def _milliseconds(line: Figures, prompt: str) -> float:
    return float(line["ms"][prompt] + line["ms"].get("encode", 0))
