"""The best, a median and the worst object of a comparison with all outlines: not to be given on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medsa.comparison.compare import Comparison, Result
from medsa.comparison.plots import png
from medsa.data.volume import Volume
from medsa.data.window import apply_window, choose_window
from medsa.evaluation.evaluate import Entry
from medsa.evaluation.overlap import dice
from medsa.prompts.annotator import first_click, tight_box
from medsa.prompts.prompt import Prompt
from medsa.segmenter.classes import classify_volume

Mask = NDArray[np.bool_]
AROUND = 0.6
"""Of an object's size is shown on each side of it."""


@dataclass(frozen=True)
class Shown:
    """An object that is shown: on slice `k` of a volume, its label, and which one of all it is."""

    what: str
    label: str
    volume: Volume
    k: int
    truth: Mask
    window: str


def overlays(comparison: Comparison, results: Sequence[Result]) -> bytes:
    """PNG: a row for each object, a column for each entrant (of its first seed), truth beside answer.

    Those with prompts get a tight box where boxes were asked for, else one click at the deepest point.
    """
    first = [result for result in results if result.seed == 0]
    boxed = bool(comparison.plan.asked.protocol().boxes)
    shown = _chosen(comparison, first, "box" if boxed else "")
    size = 2.1
    figure = Figure(figsize=(size * (1 + len(first)), size * len(shown) + 0.4), layout="constrained")
    grid = figure.subplots(len(shown), 1 + len(first), squeeze=False)
    for row, one in zip(grid, shown, strict=True):
        _draw(row[0], one, None, f"{one.what}: {one.label}")
    for column, result in enumerate(first, start=1):
        for row, (one, mask) in enumerate(
            zip(shown, _answers(comparison, result, shown, boxed), strict=True)
        ):
            title = f"{result.entrant.name}\n" if row == 0 else ""
            _draw(grid[row][column], one, mask, f"{title}{dice(mask, one.truth):.3f}")
    return png(figure)


def _chosen(comparison: Comparison, results: Sequence[Result], prompt: str) -> list[Shown]:
    """Best, median and worst by mean Dice over entrants with `prompt`, else with the first one of each."""
    values: dict[tuple[int, str, int | None], list[float]] = {}
    for result in results:
        for entry in result.entries:
            if entry["seed"] == 0:
                key = entry["case"], entry["label"], entry["slice"]
                values.setdefault(key, []).append(_value(entry, prompt))
    ranked = sorted(values, key=lambda key: (-float(np.mean(values[key])), str(key)))
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    return [_shown(comparison, what, *ranked[place]) for what, place in places.items()]


def _value(entry: Entry, prompt: str) -> float:
    prompts = entry["prompts"]
    return float(prompts.get(prompt, next(iter(prompts.values())))["dice"])


def _shown(comparison: Comparison, what: str, case: int, label: str, k: int | None) -> Shown:
    volume, mask, _ = comparison.held[case].read()
    [value] = [value for value, name in comparison.data.labels.items() if name == label]
    truth = np.asarray(mask) == value
    if k is None:
        k = int(truth.sum(axis=(0, 1)).argmax())
    return Shown(what, label, volume, k, truth[:, :, k], comparison.data.window)


def _answers(comparison: Comparison, result: Result, shown: Sequence[Shown], boxed: bool) -> list[Mask]:
    entrant = result.entrant
    if entrant.promptless:
        known = comparison.classifier(entrant, result.seed)
        return [
            classify_volume(known, one.volume, [one.k], window=comparison.data.window).mask[:, :, one.k]
            == 1 + known.labels.index(one.label)
            for one in shown
        ]
    segmenter, found = comparison.segmenter(entrant, result.seed), []
    for one in shown:
        if boxed:
            low, high = tight_box(one.truth)
            prompt = Prompt(box=np.array([[*low, one.k], [*high, one.k]]))
        else:
            prompt = Prompt(foreground=np.array([[*first_click(one.truth).index, one.k]]))
        found.append(
            segmenter.about(one.label)
            .segment_slice(one.volume, prompt, one.k, window=comparison.data.window)
            .mask[:, :, one.k]
            != 0
        )
    return found


def _draw(axes: Axes, one: Shown, mask: Mask | None, title: str) -> None:
    """The slice around the object, the truth in green, the answer in magenta."""
    pixels = apply_window(one.volume.voxels[:, :, one.k], choose_window(one.volume, one.window)) / 255
    low, high = tight_box(one.truth).astype(int)
    margin = np.maximum(8, (AROUND * (high - low + 1)).astype(int))
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin + 1, one.truth.shape)
    room = slice(low[0], high[0]), slice(low[1], high[1])
    axes.imshow(
        np.swapaxes(pixels[room], 0, 1).clip(0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    for outline, colour in ((one.truth, "lime"), (mask, "magenta")):
        if outline is not None and outline[room].any():
            axes.contour(outline[room].T.astype(float), [0.5], colors=colour, linewidths=1.0)
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
