"""Further clicks for backbones that were trained with boxes only: what a click corrects, other boxes decide.

Such a model makes nothing of points, and of a mask as prompt neither. So a click that the mask contradicts
changes the box: one that was missed stretches it, one that was spilled over cuts it; if that does not do, a
small object around the click is joined or taken away. A click is always obeyed at its own place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsa.data.model_input import Frame
from medsa.segmenter.proposals import clip_boxes, squares_around
from medsa.segmenter.session import Point, SlicePrompt, State

Floats = NDArray[np.float64]
Decode = Callable[[Floats], tuple[Tensor, Tensor]]
"""Boxes (N, 4) xyxy in model pixels -> logits (N, h, w) and predicted IoU (N,)."""

STRETCHES = (0.15, 0.6, 1.2)
"""How far beyond a missed click the box may reach, in distances of the click from the box before."""
PARTS = (14.0, 28.0, 56.0)
"""Sides of the boxes that look for a part around a click, in 256ths of the input."""
LOYALTY = 0.5
"""Weight of the likeness to the mask before: most of it was right, or it would not be corrected."""
TOUCH = 5.0
"""Radius in 256ths of the input of what a click changes when no box explains it."""


def correct(decode: Decode, frame: Frame, prompt: SlicePrompt, before: State) -> State:
    """The mask `before`, changed until it agrees with every click of `prompt`; itself when it does."""
    logits, score = before.logits.float(), before.score
    for _ in range(len(prompt)):
        wrong = _contradicted(logits > 0, prompt, frame)
        if wrong is None:
            break
        logits, score = _better(decode, frame, prompt, logits, *wrong)
    for points, positive in ((prompt.foreground, True), (prompt.background, False)):
        for point in points:
            logits = _touched(logits, point, positive, prompt, frame)
    return State(logits.half(), score)


def _contradicted(mask: Tensor, prompt: SlicePrompt, frame: Frame) -> tuple[Point, bool] | None:
    """The newest click that lies on the wrong side of `mask`, and whether it is a positive one."""
    for points, positive in ((prompt.foreground, True), (prompt.background, False)):
        for point in reversed(points):
            if bool(mask[_cell(point, len(mask), frame)]) != positive:
                return point, positive
    return None


def _better(
    decode: Decode, frame: Frame, prompt: SlicePrompt, logits: Tensor, click: Point, positive: bool
) -> tuple[Tensor, float]:
    """The best mask that agrees with `click`: of another box, with a part more or less, or touched."""
    mask = logits > 0
    boxes = list(_stretched(mask, click, frame) if positive else _cut(mask, click, prompt, frame))
    found = [(logits, torch.tensor(0.0))]
    if boxes:
        found += zip(*decode(clip_boxes(np.array(boxes), frame)), strict=True)
    if not any(_mistakes(whole > 0, prompt, frame) == 0 for whole, _ in found):
        place = _cell(click, len(mask), frame)
        for part, score in zip(*decode(squares_around(click, PARTS, frame)), strict=True):
            if part[place] > 0:
                found.append(
                    (torch.maximum(logits, part) if positive else torch.minimum(logits, -part), score)
                )

    def worth(candidate: tuple[Tensor, Tensor]) -> float:
        changed = candidate[0] > 0
        alike = float((changed & mask).sum() / (changed | mask).sum().clamp(min=1))
        return float(candidate[1]) + LOYALTY * alike - 2 * _mistakes(changed, prompt, frame)

    best, score = max(found, key=worth)
    return _touched(best, click, positive, prompt, frame), float(score)


def _stretched(mask: Tensor, click: Point, frame: Frame) -> Iterator[Floats]:
    """Boxes that hold the mask and a click outside it, with less and more room beyond the click."""
    if not mask.any():
        return
    box = _box(mask, frame)
    low, high, at = box[:2], box[2:], np.asarray(click)
    away = np.maximum(np.maximum(low - at, at - high), 0)
    for stretch in STRETCHES:
        room = np.maximum(stretch * away, 0.05 * (high - low + 1))
        yield np.concatenate([np.minimum(low, at - room), np.maximum(high, at + room)])


def _cut(mask: Tensor, click: Point, prompt: SlicePrompt, frame: Frame) -> Iterator[Floats]:
    """The mask's box cut beside the click, on each side that leaves the positive clicks in it."""
    box = _box(mask, frame)
    gap = frame.size / 128
    for side in range(4):
        cut = box.copy()
        cut[side] = click[side % 2] + (gap if side < 2 else -gap)
        inside = all(
            cut[axis] - gap <= point[axis] <= cut[axis + 2] + gap
            for point in prompt.foreground
            for axis in range(2)
        )
        if inside and (cut[2:] - cut[:2] >= 2 * gap).all():
            yield cut


def _touched(logits: Tensor, click: Point, positive: bool, prompt: SlicePrompt, frame: Frame) -> Tensor:
    """Logits that agree with the click: in a disc around it if need be, which spares the other kind."""
    if bool(logits[_cell(click, len(logits), frame)] > 0) == positive:
        return logits
    cell = frame.size / len(logits)
    others = prompt.background if positive else prompt.foreground
    nearest = min((float(np.hypot(*np.subtract(click, other))) / 2 for other in others), default=np.inf)
    radius = max(min(TOUCH * frame.size / 256, nearest), cell / 2)
    y, x = np.ogrid[: len(logits), : len(logits)]
    row, column = _cell(click, len(logits), frame)
    disc = torch.from_numpy((x - column) ** 2 + (y - row) ** 2 <= (radius / cell) ** 2)
    return torch.where(disc, torch.tensor(1.0 if positive else -1.0), logits)


def _mistakes(mask: Tensor, prompt: SlicePrompt, frame: Frame) -> int:
    on = sum(not mask[_cell(point, len(mask), frame)] for point in prompt.foreground)
    return on + sum(bool(mask[_cell(point, len(mask), frame)]) for point in prompt.background)


def _box(mask: Tensor, frame: Frame) -> Floats:
    rows, columns = (np.flatnonzero(mask.any(dim=axis).numpy()) for axis in (1, 0))
    cell = frame.size / len(mask)
    low, high = np.array([columns[0], rows[0]]) * cell, np.array([columns[-1] + 1, rows[-1] + 1]) * cell - 1
    return np.concatenate([low, high])


def _cell(point: Point, cells: int, frame: Frame) -> tuple[int, int]:
    """(row, column) of low-resolution logits in which a point (model pixels) lies."""
    x, y = (int(min(max((value + 0.5) * cells / frame.size, 0), cells - 1)) for value in point)
    return y, x
