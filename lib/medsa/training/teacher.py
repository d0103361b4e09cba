"""Targets without a label: masks that the frozen base gives for a box and, asked again, stands by.

A model that was taught boxes knows objects; a click cannot ask it for them. Random boxes are put on any
image, each mask's own box is asked for next, and a mask is kept when it stays the same (MEASURES.md, section
3). What is kept teaches clicks, and that boxes go on meaning what they meant.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsa.prompts.annotator import tight_boxes
from medsa.sam import Sam
from medsa.training.items import Item, Mask, Picture
from medsa.training.losses import iou

AGREEMENT = 0.88
"""IoU of the masks of both rounds from which on a mask counts as stood by."""
STABLE = 0.9
"""IoU of a mask's cuts at logits of 1 and -1 from which on its border counts as certain."""
AREA = (0.003, 0.7)
"""Parts of the slice that a mask may fill."""
FILLED = 0.95
"""The part of its own box that a mask fills at most: more, and it is the box that was segmented."""
ALIKE = 0.7
"""IoU from which on two masks show the same object."""


def teacher_items(
    sam: Sam,
    picture: Picture,
    embedding: Tensor,
    study: str,
    rng: np.random.Generator,
    *,
    boxes: int = 12,
    most: int = 6,
) -> list[Item]:
    """At most so many objects on a picture that the base answers `boxes` random boxes with, the surest first.

    `embedding` (1, C, h, w) is the picture's.
    """
    logits = _masks(sam, embedding, random_boxes(picture, rng, boxes))
    cells = logits.shape[-1]
    rows, columns = (
        max(1, round(n * cells / sam.image_size)) for n in (picture.frame.rows, picture.frame.columns)
    )
    first = _clear(logits, rows, columns)
    kept = [n for n in range(len(first)) if _sized(first[n], rows * columns)]
    if not kept:
        return []
    again = _masks(sam, embedding, _boxes_of(first[kept], sam.image_size / cells))
    second = _clear(again, rows, columns)
    agreement = _pairwise(first[kept], second)
    stability = _pairwise(_clear(again - 1, rows, columns), _clear(again + 1, rows, columns))
    sure = [
        n for n in range(len(kept))
        if agreement[n] >= AGREEMENT and stability[n] >= STABLE and _sized(second[n], rows * columns)
    ]  # fmt: skip
    found: list[Mask] = []
    for n in sorted(sure, key=lambda n: -agreement[n] * stability[n]):
        if len(found) < most and all(_pairwise(second[n][None], other[None])[0] < ALIKE for other in found):
            found.append(second[n])
    return [Item.of(picture, mask, "object", study) for mask in found]


def random_boxes(picture: Picture, rng: np.random.Generator, count: int) -> Tensor:
    """(N, 4) xyxy boxes in model pixels: of all sizes, anywhere on the slice."""
    size = np.array([picture.frame.columns, picture.frame.rows], dtype=float)
    extent = np.exp(rng.uniform(np.log(0.08), np.log(0.85), (count, 1)) + rng.normal(0, 0.25, (count, 2)))
    extent = extent.clip(0.05, 0.95) * size
    low = rng.uniform(0, 1, (count, 2)) * (size - extent)
    return torch.from_numpy(np.concatenate([low, low + extent - 1], axis=1))


def _masks(sam: Sam, embedding: Tensor, boxes: Tensor) -> Tensor:
    with torch.no_grad():
        logits, _ = sam.decode(embedding, boxes=boxes.to(embedding))
    return logits[:, 0].float().cpu()


def _clear(logits: Tensor, rows: int, columns: int) -> Mask:
    """Masks (N, c, c) without what lies on the padding."""
    masks = (logits > 0).numpy()
    masks[:, rows:] = masks[:, :, columns:] = False
    return masks


def _sized(mask: Mask, area: int) -> bool:
    if not AREA[0] * area <= mask.sum() <= AREA[1] * area:
        return False
    (low, high) = tight_boxes(mask[None])[0]
    return bool(mask.sum() <= FILLED * np.prod(high - low + 1))


def _boxes_of(masks: Mask, cell: float) -> Tensor:
    boxes = tight_boxes(masks)
    low, high = boxes[:, 0] * cell, (boxes[:, 1] + 1) * cell - 1
    return torch.from_numpy(np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1))


def _pairwise(ones: Mask, others: Mask) -> NDArray[np.float32]:
    """(N,) IoU of masks (N, c, c) with others (N, c, c)."""
    return iou(torch.from_numpy(ones)[:, None], torch.from_numpy(others)[:, None])[:, 0].numpy()
