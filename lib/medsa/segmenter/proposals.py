"""Box proposals: how a backbone that was trained with boxes only understands a bare click.

Candidate boxes are squares of several sizes around the click, and the boxes of what has the click's colour at
several tolerances. All are decoded on an embedding pooled to half its side (a quarter of the arithmetic,
nearly the same masks); the box whose mask looks best is decoded in full.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medsa.data.model_input import Frame
from medsa.sam import Promptable
from medsa.sam.accelerate import Compiled, compile_module
from medsa.segmenter.session import Point

Boxes = NDArray[np.float64]
Masks = NDArray[np.bool_]

SIDES = np.array([18, 27, 40, 60, 90, 135]) / 256
"""Sides of the squares around a click, as parts of the model's square."""

TOLERANCES, REGIONS = 24, 6
"""Tolerances tried, and the most regions of like colour whose boxes are kept."""

BATCH = len(SIDES) + REGIONS
"""Boxes decoded coarsely at a time: always as many, since every new number would be compiled anew."""


@dataclass(frozen=True)
class Candidates:
    """Masks for one click: `boxes` (N, 4) xyxy, `logits` (N, h, w), `scores` (N,) predicted IoU."""

    boxes: Boxes
    logits: Tensor
    scores: NDArray[np.float32]


class CoarseDecoder:
    """The mask decoder for boxes on an embedding pooled to half its side; its masks are for choosing only.

    Compiled when `sam` is accelerated.
    """

    def __init__(self, sam: Promptable) -> None:
        self.sam = sam
        self.side = (sam.embedding_size + 1) // 2
        self.dense_pe = sam.prompt_encoder.pe_layer((self.side, self.side))[None]
        self._compiled = self._compile() if sam.accelerated else None

    def _compile(self) -> Compiled | None:
        try:
            decoder = self.sam.folded_decoder(self.dense_pe, multimask=False)
        except TypeError:
            return None
        width, side = self.sam.config.decoder.width, self.side
        shapes = [[1, width, side, side], [1, width, 1, 1], [BATCH, 2, width]]
        example = [torch.zeros(shape) for shape in shapes]
        return compile_module(decoder, example, shapes, watched=self.sam.mask_decoder)

    def decode(self, embedding: Tensor, boxes: Boxes) -> Candidates:
        """Masks of boxes (N, 4), at most `BATCH`, at half the resolution of the model's own."""
        pooled = F.adaptive_avg_pool2d(embedding, self.side)
        padded = np.concatenate([boxes, np.repeat(boxes[-1:], BATCH - len(boxes), axis=0)])
        prompts = torch.from_numpy(padded).to(embedding)
        sparse, _ = self.sam.prompt_encoder(points=None, boxes=prompts, masks=None)
        dense = self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        if self._compiled is not None and self._compiled.fits(self.sam.mask_decoder):
            logits, scores = self._compiled(pooled, dense, sparse)
        else:
            dense = dense.expand(BATCH, -1, self.side, self.side)
            logits, scores = self.sam.mask_decoder(pooled, self.dense_pe, sparse, dense, False)
        return Candidates(boxes, logits[: len(boxes), 0], scores[: len(boxes), 0].cpu().numpy())


def best_of_proposals(
    sam: Promptable,
    coarse: CoarseDecoder,
    embedding: Tensor,
    picture: Tensor,
    click: Point,
    frame: Frame,
) -> tuple[Tensor, float]:
    """Logits (h, w) and predicted IoU of the object that a single click at (x, y) model pixels means.

    `embedding` (1, C, h, w), `picture` (C, s, s) the same slice in its colours 0..1.
    """
    boxes = np.concatenate([squares_around(click, frame), boxes_of_colour(picture, click, frame)])
    best = int(np.argmax(quality(coarse.decode(embedding, boxes), picture, click, frame)))
    logits, scores = sam.decode(embedding, boxes=torch.from_numpy(boxes[best : best + 1]).to(embedding))
    return logits[0, 0].cpu(), float(scores[0, 0])


def squares_around(click: Point, frame: Frame) -> Boxes:
    """(N, 4) squares of several sizes around a click, clipped to the slice; model pixels."""
    half = SIDES[:, None] * frame.size / 2
    return clip_boxes(np.concatenate([np.array(click) - half, np.array(click) + half], axis=1), frame)


def boxes_of_colour(picture: Tensor, click: Point, frame: Frame) -> Boxes:
    """(N, 4) boxes of the connected regions around a click whose colour is like the click's.

    The region grows with the tolerance; it is taken where it is about to leak, that is before the greatest
    relative growths of its area. Regions smaller than a thousandth or larger than nine tenths of the slice do
    not count.
    """
    side = picture.shape[-1] // 2
    cell = frame.size / side
    small = F.adaptive_avg_pool2d(picture.float(), side).numpy()
    small = ndimage.gaussian_filter(small, (0, 0.75, 0.75))
    rows, columns = max(1, round(frame.rows / cell)), max(1, round(frame.columns / cell))
    small = small[:, :rows, :columns]
    x = min(int((click[0] + 0.5) / cell), columns - 1)
    y = min(int((click[1] + 0.5) / cell), rows - 1)
    around = small[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    unlike = np.linalg.norm(small - np.median(around, axis=(1, 2))[:, None, None], axis=0)
    levels = np.linspace(0.02, 1, TOLERANCES) ** 1.5 * np.percentile(unlike, 98)

    regions = []
    for level in levels:
        parts, _ = ndimage.label(unlike <= level)
        region = parts == parts[y, x]
        if parts[y, x] and 1e-3 * region.size < region.sum() < 0.9 * region.size:
            regions.append(region)
    if not regions:
        return np.empty((0, 4))
    sizes = np.log([region.sum() for region in regions])
    growth = np.append(np.diff(sizes), 0.0)
    kept: list[int] = []
    for index in np.argsort(-growth, kind="stable"):
        if len(kept) < REGIONS and all(abs(sizes[index] - sizes[other]) > 0.15 for other in kept):
            kept.append(int(index))
    return np.stack([mask_box(_without_threads(regions[index], x, y), cell, frame) for index in kept])


def quality(masks: Candidates, picture: Tensor, click: Point, frame: Frame) -> NDArray[np.float64]:
    """(N,) how good each mask looks, the higher the better; weights fitted on a dozen public sets.

    What counts: predicted IoU, stability under the threshold, contrast of the colours on both sides of the
    border; against it: a mask that merely fills its box. One that does not hold the click comes last.
    """
    logits = masks.logits.cpu().numpy()
    inside = logits > 0
    cell = frame.size / logits.shape[-1]
    stability = (logits > 1).sum(axis=(1, 2)) / (logits > -1).sum(axis=(1, 2)).clip(min=1)
    extents = masks.boxes[:, 2:] - masks.boxes[:, :2] + 1
    fill = (inside.sum(axis=(1, 2)) * cell**2 / extents.prod(axis=1)).clip(max=1.2)
    x, y = (min(max(int((value + 0.5) / cell), 0), logits.shape[-1] - 1) for value in click)
    colours = F.adaptive_avg_pool2d(picture.float(), logits.shape[-1]).cpu().numpy()
    contrast = np.log(_contrast(inside, colours, max(1, logits.shape[-1] // 64)) + 0.01)
    return 10.6 * masks.scores + 5.0 * stability + 1.5 * contrast - 3.8 * fill + 100.0 * inside[:, y, x]


def mask_box(mask: Masks, cell: float, frame: Frame, margin: float = 0.0) -> NDArray[np.float64]:
    """(4,) box around a mask (h, w) of cells, xyxy model pixels, wider all round by `margin` of it."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    low = np.array([columns[0], rows[0]]) * cell
    high = np.array([columns[-1] + 1, rows[-1] + 1]) * cell - 1
    extent = margin * (high - low + 1)
    return clip_boxes(np.concatenate([low - extent, high + extent])[None], frame)[0]


def clip_boxes(boxes: Boxes, frame: Frame) -> Boxes:
    """Boxes (N, 4) cut at the borders of the slice in the model's square."""
    return boxes.clip(0, np.array([frame.columns, frame.rows] * 2) - 1.0)


def _contrast(masks: Masks, colours: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """(N,) distance between the mean colours (C, h, w) on both sides of the border of masks (N, h, w)."""
    flat = colours.reshape(len(colours), -1).T

    def mean(ring: Masks) -> NDArray[np.float32]:
        weights = ring.reshape(len(ring), -1).astype(np.float32)
        return weights @ flat / weights.sum(axis=1, keepdims=True).clip(min=1)

    difference = mean(_grown(masks, reach) & ~masks) - mean(masks & _grown(~masks, reach))
    return np.sqrt(np.square(difference).mean(axis=1))


def _grown(masks: Masks, reach: int) -> Masks:
    """Masks (N, h, w) wider by `reach` cells along rows and columns."""
    wide = masks
    for axis in (1, 2):
        source = np.moveaxis(wide, axis, 0)
        target = source.copy()
        for step in range(1, reach + 1):
            target[step:] |= source[:-step]
            target[:-step] |= source[step:]
        wide = np.moveaxis(target, 0, axis)
    return wide


def _without_threads(region: Masks, x: int, y: int) -> Masks:
    """The part of a region around (x, y) that does not hang on it by a thread; all of it if none does."""
    opened = ndimage.binary_opening(region)
    parts, _ = ndimage.label(opened)
    return parts == parts[y, x] if parts[y, x] else region
