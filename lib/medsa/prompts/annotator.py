"""The simulated annotator: clicks and boxes as a person would give them, from the truth and what is wrong.

Masks are boolean arrays of any dimension, points indices into them (voxels, `(i, j)` for a slice). The same
arguments always give the same prompts: randomness comes from the generator that is passed in, and without
one every choice is the deepest point, ties going to the first in memory order. The functions for batches
(B, H, W) give image by image what the functions for one mask give, at the cost of one.
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


@dataclass(frozen=True)
class Clicks:
    """A click for each of B masks: `index` (B, 2), `positive` (B,), `found` (B,), false where none is due.

    Where `found` is false, `index` is (0, 0).
    """

    index: NDArray[np.intp]
    positive: Mask
    found: Mask


def first_clicks(truth: Mask, rng: np.random.Generator | None = None) -> Clicks:
    """`first_click` for masks (B, H, W); where a mask is empty nothing is found."""
    found = truth.any(axis=(1, 2))
    return Clicks(_inside_each(truth, found, rng), np.ones(len(truth), bool), found)


def next_clicks(truth: Mask, predicted: Mask, rng: np.random.Generator | None = None) -> Clicks:
    """`next_click` for masks (B, H, W); where a prediction is right nothing is found."""
    missed, spilled = np.split(_largest_regions(np.concatenate([truth & ~predicted, predicted & ~truth])), 2)
    positive = missed.sum(axis=(1, 2)) >= spilled.sum(axis=(1, 2))
    region = np.where(positive[:, None, None], missed, spilled)
    found = region.any(axis=(1, 2))
    return Clicks(_inside_each(region, found, rng), positive, found)


def tight_box(truth: Mask) -> Floats:
    """(2, D): the lowest and highest index of the object along each axis, both inclusive."""
    if not truth.any():
        raise ValueError("there is no object to draw a box around")
    indices = np.argwhere(truth)
    return np.stack([indices.min(axis=0), indices.max(axis=0)]).astype(np.float64)


def tight_boxes(truth: Mask) -> Floats:
    """(B, 2, 2): `tight_box` for masks (B, H, W), none of them empty."""
    if not truth.any(axis=(1, 2)).all():
        raise ValueError("there is no object to draw a box around")
    boxes = np.empty((len(truth), 2, 2))
    for axis in (1, 2):
        held = truth.any(axis=3 - axis)
        boxes[:, 0, axis - 1] = held.argmax(axis=1)
        boxes[:, 1, axis - 1] = truth.shape[axis] - 1 - held[:, ::-1].argmax(axis=1)
    return boxes


def jittered_boxes(
    truth: Mask, rng: np.random.Generator, deviation: float = 0.1, most: float = 20 / 1024
) -> Floats:
    """(B, 2, 2): boxes as Segment Anything was trained with, around masks (B, H, W).

    Each side moves by normal noise whose `deviation` is a part of the object's extent along that axis, by
    `most` of the image's extent at the utmost, and stays in the image.
    """
    tight = tight_boxes(truth)
    extent = tight[:, 1:] - tight[:, :1] + 1
    size = np.array(truth.shape[1:])
    moves = (rng.standard_normal(tight.shape) * deviation * extent).clip(-most * size, most * size)
    return (tight + moves).clip(0, size - 1.0)


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
    (around,) = ndimage.find_objects(region.astype(np.uint8))
    depth = ndimage.distance_transform_edt(np.pad(region[around], 1))
    depth = depth[(slice(1, -1),) * region.ndim]
    deepest = np.unravel_index(depth.argmax(), depth.shape)
    return tuple(int(axis.start + index) for axis, index in zip(around, deepest, strict=True))


def _largest_region(wrong: Mask) -> Mask:
    parts, count = ndimage.label(wrong)
    if count <= 1:
        return wrong
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def _mosaic(masks: Mask) -> Mask:
    """Masks (B, H, W) below one another, (B * (H + 2), W + 2), each in a frame of zeros."""
    return np.pad(masks, ((0, 0), (1, 1), (1, 1))).reshape(-1, masks.shape[2] + 2)


def _tiles(mosaic: NDArray, shape: tuple[int, ...]) -> NDArray:
    """What `_mosaic` laid out, (B, H, W) again."""
    return mosaic.reshape(shape[0], shape[1] + 2, shape[2] + 2)[:, 1:-1, 1:-1]


def _largest_regions(wrong: Mask) -> Mask:
    """`_largest_region` for masks (B, H, W)."""
    parts, count = ndimage.label(_mosaic(wrong))
    parts = _tiles(parts, wrong.shape)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    tile = np.zeros(count + 1, np.intp)
    tile[parts] = np.arange(len(parts))[:, None, None]
    order = np.lexsort((-sizes[1:], tile[1:])) + 1  # stable: of equal regions of a tile the first leads
    tiles, first = np.unique(tile[order], return_index=True)
    largest = np.full(len(parts), -1)
    largest[tiles] = order[first]
    return parts == largest[:, None, None]


def _inside_each(region: Mask, found: Mask, rng: np.random.Generator | None) -> NDArray[np.intp]:
    """(B, 2): `_inside` for regions (B, H, W), drawn one after another; zeros where not `found`."""
    index = np.zeros((len(region), 2), np.intp)
    if rng is not None:
        for n in np.flatnonzero(found):
            index[n] = _inside(region[n], rng)
    elif found.any():
        depth = _tiles(ndimage.distance_transform_edt(_mosaic(region)), region.shape)
        deepest = depth.reshape(len(region), -1).argmax(axis=1)
        index[found] = np.stack(np.unravel_index(deepest, region.shape[1:]), axis=1)[found]
    return index
