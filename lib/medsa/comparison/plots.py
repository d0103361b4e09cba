"""A comparison's plots, as PNG: Dice over clicks, boxes, and against parameters and time."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medsa.comparison.figures import Figures, prompts_of
from medsa.comparison.report import said
from medsa.evaluation.unasked import UNASKED


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
    axes.set(ylim=(0, 1), ylabel="Dice")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return png(figure)


def _colour(place: int) -> Any:
    return colormaps["tab20"]((2 * place) % 20 + (place // 10) % 2)


def _curves(axes: Axes, figures: Figures, prompts: list[str]) -> None:
    """A line for each entrant over `prompts`; those that take none are level ones."""
    for place, line in enumerate(figures["entrants"]):
        known = [
            (at, line["summary"][name]["dice"]) for at, name in enumerate(prompts) if name in line["summary"]
        ]
        if known:
            at, values = zip(*known, strict=True)
            means = [value["mean"] for value in values]
            axes.plot(at, means, marker="o", color=_colour(place), label=line["name"])
            low, high = ([value[end] for value in values] for end in ("low", "high"))
            axes.fill_between(at, low, high, color=_colour(place), alpha=0.08)
        elif UNASKED in line["summary"]:
            mean = line["summary"][UNASKED]["dice"]["mean"]
            axes.axhline(mean, linestyle="--", color=_colour(place), label=f"{line['name']} (no prompt)")
    axes.set_xticks(range(len(prompts)), list(map(said, prompts)))


def _against(axes: Axes, figures: Figures, prompt: str, value: Callable[[Figures, str], float]) -> None:
    """A point for each entrant: what it costs, and Dice with `prompt`, or with none where it takes none."""
    for place, line in enumerate(figures["entrants"]):
        asked = prompt if prompt in line["summary"] else UNASKED
        if asked not in line["summary"]:
            continue
        dice = line["summary"][asked]["dice"]
        span = [[dice["mean"] - dice["low"]], [dice["high"] - dice["mean"]]]
        axes.errorbar(
            value(line, asked), dice["mean"], yerr=span, fmt="s" if asked == UNASKED else "o", capsize=3,
            color=_colour(place), label=f"{line['name']}, {said(asked)}",
        )  # fmt: skip
    if value is _trained:
        axes.set_xscale("symlog", linthresh=1e4)
        axes.set(xlim=(-1e3, None), xlabel="parameters that learn")
    else:
        axes.set(xscale="log", xlabel="milliseconds of an answer, with its encoding")


def _trained(line: Figures, _prompt: str) -> float:
    return float(line["trained"])


def _milliseconds(line: Figures, prompt: str) -> float:
    return float(line["ms"][prompt] + line["ms"].get("encode", 0))
