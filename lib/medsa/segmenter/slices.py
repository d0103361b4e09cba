"""One slice: its prompts, and what is already known of the mask, become logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsa.data.model_input import Frame
from medsa.sam import Sam
from medsa.segmenter.corrections import correct
from medsa.segmenter.proposals import boxes_around, clip_boxes
from medsa.segmenter.session import Point, SlicePrompt, State

MARGIN = 0.05
"""How much wider than a neighbour's mask the box is that looks for the object on the next slice."""


@dataclass(frozen=True)
class Slice:
    """What decoding needs of a slice: its `embedding` (1, C, h, w) and its `frame` in the model's square."""

    embedding: Tensor
    frame: Frame


def decode(sam: Sam, where: Slice, prompt: SlicePrompt, before: State | None = None) -> State:
    """The mask of `prompt`, refining the mask `before` it when there is one."""
    if "point" in sam.config.trained_prompts:
        return _refine(sam, where, prompt, before)

    def boxed(boxes: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        logits, scores = sam.decode(where.embedding, boxes=torch.from_numpy(boxes).float())
        return logits[:, 0], scores[:, 0]

    if before is None and prompt.box is not None:
        logits, scores = boxed(clip_boxes(np.array([prompt.box]), where.frame))
        before = State(logits[0].half(), float(scores[0]))
    elif before is None:
        before = _propose(sam, where, SlicePrompt(prompt.foreground[:1]))
    return correct(boxed, where.frame, prompt, before)


def follow(sam: Sam, where: Slice, neighbour: State) -> State:
    """The mask of the object whose mask on the slice beside this one is `neighbour`, which is not empty."""
    box = torch.from_numpy(mask_box(neighbour.mask, where.frame, MARGIN)).float()[None]
    logits, scores = sam.decode(where.embedding, boxes=box)
    return State(keep_parts(logits[0, 0], neighbour.mask).half(), float(scores[0, 0]))


def goes_on(state: State, neighbour: State) -> bool:
    """Whether `state` still shows the object of the slice beside it."""
    here, there = state.mask, neighbour.mask
    shared = (here & there).sum()
    return bool(state.score > 0.5 and 2 * shared > 0.4 * (here.sum() + there.sum()))


def mask_box(mask: NDArray[np.bool_], frame: Frame, margin: float = 0.0) -> NDArray[np.float64]:
    """(4,) box around a low-resolution mask (h, w), xyxy in model pixels, wider by `margin` of its extent."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cell = frame.size / len(mask)
    low = np.array([columns[0], rows[0]]) * cell
    high = np.array([columns[-1] + 1, rows[-1] + 1]) * cell - 1
    extent = margin * (high - low)
    return clip_boxes(np.concatenate([low - extent, high + extent])[None], frame)[0]


def keep_parts(logits: Tensor, seed: NDArray[np.bool_]) -> Tensor:
    """Logits (h, w) without the connected parts of the mask that do not touch `seed`, unless none does."""
    parts, count = ndimage.label((logits > 0).numpy())
    kept = np.unique(parts[seed])
    if count <= 1 or not kept.any():
        return logits
    return torch.where(torch.from_numpy(np.isin(parts, kept)), logits, -logits.abs())


def _propose(sam: Sam, where: Slice, click: SlicePrompt) -> State:
    boxes = boxes_around(click.foreground[0], where.frame)
    logits, scores = sam.decode(where.embedding, boxes=torch.from_numpy(boxes).float())
    seed = _cells(click.foreground, logits.shape[-1], where.frame)
    holds = logits[:, 0].numpy()[:, seed].any(axis=1)
    best = int((scores[:, 0] + torch.from_numpy(holds)).argmax())
    return State(keep_parts(logits[best, 0], seed).half(), float(scores[best, 0]))


def _refine(sam: Sam, where: Slice, prompt: SlicePrompt, before: State | None) -> State:
    points = prompt.foreground + prompt.background
    labels = [1.0] * len(prompt.foreground) + [0.0] * len(prompt.background)
    box = None
    if prompt.box is not None:
        box = torch.from_numpy(clip_boxes(np.array([prompt.box]), where.frame)).float()
    single = before is None and box is None and len(points) == 1
    logits, scores = sam.decode(
        where.embedding,
        points=torch.tensor([points]) if points else None,
        point_labels=torch.tensor([labels]) if points else None,
        boxes=box,
        masks=before.logits.float()[None, None] if before is not None else None,
        multimask=single,
    )
    best = int(scores[0].argmax())
    chosen = logits[0, best]
    if prompt.foreground and prompt.box is None:
        chosen = keep_parts(chosen, _cells(prompt.foreground, chosen.shape[-1], where.frame))
    return State(chosen.half(), float(scores[0, best]))


def _cells(points: tuple[Point, ...], cells: int, frame: Frame) -> NDArray[np.bool_]:
    """(cells, cells): the cells of low-resolution logits in which points (model pixels) lie."""
    marked = np.zeros((cells, cells), bool)
    x, y = ((np.array(points).T + 0.5) * cells / frame.size).astype(int).clip(0, cells - 1)
    marked[y, x] = True
    return marked
