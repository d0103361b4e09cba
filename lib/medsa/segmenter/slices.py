"""One slice: its prompts and what is already known of the mask become logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsa.data.model_input import Frame
from medsa.sam import Sam
from medsa.segmenter.proposals import boxes_around, clip_boxes
from medsa.segmenter.session import SlicePrompt, State


@dataclass(frozen=True)
class Slice:
    """What decoding needs of a slice: its `embedding` (1, C, h, w) and its `frame` in the model's square."""

    embedding: Tensor
    frame: Frame


def decode(sam: Sam, where: Slice, prompt: SlicePrompt, before: State | None = None) -> State:
    """The mask of `prompt`, refining the mask `before` it when there is one."""
    if before is None and prompt.box is None and "point" not in sam.config.trained_prompts:
        click = SlicePrompt(prompt.foreground[:1])
        before = _propose(sam, where, click)
        if click == prompt:
            return before
    return _refine(sam, where, prompt, before)


def _propose(sam: Sam, where: Slice, click: SlicePrompt) -> State:
    boxes = boxes_around(click.foreground[0], where.frame)
    logits, scores = sam.decode(where.embedding, boxes=torch.from_numpy(boxes).float())
    x, y = _cell(click.foreground[0], logits.shape[-1], where.frame)
    holds = logits[:, 0, y, x] > 0
    best = int((scores[:, 0] + holds).argmax())
    return State(logits[best, 0].half(), float(scores[best, 0]))


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
    return State(logits[0, best].half(), float(scores[0, best]))


def _cell(point: tuple[float, float], cells: int, frame: Frame) -> tuple[int, int]:
    """The cell (x, y) of low-resolution logits, `cells` a side, in which a point (model pixels) lies."""
    x, y = (int((value + 0.5) * cells / frame.size) for value in point)
    return min(max(x, 0), cells - 1), min(max(y, 0), cells - 1)
