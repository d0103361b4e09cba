"""The simulated annotator: clicks and boxes as a person would give them, from the truth and what is wrong.

Masks are boolean arrays of any dimension, points indices into them (voxels, `(i, j)` for a slice). The same
arguments always give the same prompts: randomness comes from the generator that is passed in, and without
one every choice is the deepest point, ties going to the first in memory order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Click:
    """A point `index` of a mask, `positive` on the object or negative beside it."""

    index: tuple[int, ...]
    positive: bool


def first_click(truth: Mask, rng: np.random.Generator | None = None) -> Click:
    """A click on the object: at its deepest point, or anywhere in it when there is an `rng`."""
    if not truth.any():
        raise ValueError("there is no object to click on")
    return Click(_inside(truth, rng), True)


def next_click(truth: Mask, predicted: Mask, rng: np.random.Generator | None = None) -> Click | None:
    """A click in the largest wrong region (connected through faces), positive if missed, negative if spilled.

    At the region's deepest point, or anywhere in it when there is an `rng`. None when nothing is wrong.
    """
    missed, spilled = (_largest_region(wrong) for wrong in (truth & ~predicted, predicted & ~truth))
    positive = missed.sum() >= spilled.sum()
    region = missed if positive else spilled
    return Click(_inside(region, rng), bool(positive)) if region.any() else None


def tight_box(truth: Mask) -> Floats:
    """(2, D): the lowest and highest index of the object along each axis, both inclusive."""
    if not truth.any():
        raise ValueError("there is no object to draw a box around")
    indices = np.argwhere(truth)
    return np.stack([indices.min(axis=0), indices.max(axis=0)]).astype(np.float64)


def loose_box(truth: Mask, iou: float, rng: np.random.Generator) -> Floats:
    """(2, D): a box inside the array whose IoU with the tight box is `iou` (0 < iou < 1), to within 0.001.

    Every side moves by its own random part of the object's extent, all by the one factor that gives the IoU.
    """
    tight = tight_box(truth)
    extent = tight[1] - tight[0] + 1
    bounds = np.array(truth.shape) - 1.0
    while True:
        moves = rng.uniform(-1, 1, tight.shape) * extent
        low, high = 0.0, 1.0
        for _ in range(40):
            factor = (low + high) / 2
            box = np.clip(tight + factor * moves, 0, bounds)
            reached = box_iou(tight, box) < iou
            low, high = (low, factor) if reached else (factor, high)
        if abs(box_iou(tight, box) - iou) < 1e-3:
            return box


def box_iou(one: Floats, other: Floats) -> float:
    """Intersection over union of two boxes (2, D), corners inclusive."""
    common = np.minimum(one[1], other[1]) - np.maximum(one[0], other[0]) + 1
    shared = float(np.prod(common.clip(min=0)))
    sizes = [float(np.prod((box[1] - box[0] + 1).clip(min=0))) for box in (one, other)]
    return shared / (sum(sizes) - shared)


def _inside(region: Mask, rng: np.random.Generator | None) -> tuple[int, ...]:
    if rng is not None:
        indices = np.argwhere(region)
        return tuple(map(int, indices[rng.integers(len(indices))]))
    depth = ndimage.distance_transform_edt(np.pad(region, 1))
    depth = depth[(slice(1, -1),) * region.ndim]
    return tuple(map(int, np.unravel_index(depth.argmax(), region.shape)))


def _largest_region(wrong: Mask) -> Mask:
    parts, count = ndimage.label(wrong)
    if count <= 1:
        return wrong
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()
