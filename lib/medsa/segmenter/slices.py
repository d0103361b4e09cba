"""One slice: its prompts, and what is already known of its mask, become logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsa.data.model_input import Frame
from medsa.sam import Promptable
from medsa.segmenter.corrections import cell_of, correct
from medsa.segmenter.proposals import CoarseDecoder, best_of_proposals, clip_boxes
from medsa.segmenter.session import SlicePrompt, State


@dataclass(frozen=True)
class Encoded:
    """What is kept of a slice: `embedding` (1, C, h, w) and `picture` (1 or 3, s, s), its colours 0..1."""

    embedding: Tensor
    picture: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.embedding.nbytes + self.picture.nbytes


class SliceDecoder:
    """Prompts to masks on encoded slices, in the way the model's training allows."""

    def __init__(self, sam: Promptable) -> None:
        self.sam = sam
        self.coarse = None if "point" in sam.config.trained_prompts else CoarseDecoder(sam)

    def decode(
        self, encoded: Encoded, frame: Frame, prompt: SlicePrompt, before: State | None = None
    ) -> State:
        """The mask of `prompt`, refining the mask `before` it; every click is obeyed at its own place."""
        if self.coarse is None:
            logits, score = self._from_points(encoded, frame, prompt, before)
        elif before is not None:
            logits, score = before.logits.float(), before.score
        elif prompt.box is not None:
            logits, score = self._from_box(encoded, clip_boxes(np.array([prompt.box]), frame))
        else:
            logits, score = best_of_proposals(
                self.sam, self.coarse, encoded.embedding, encoded.picture, prompt.foreground[0], frame
            )
        return obeyed(logits, score, encoded, prompt, frame)

    def _from_box(self, encoded: Encoded, box: NDArray[np.float64]) -> tuple[Tensor, float]:
        logits, scores = self.sam.decode(encoded.embedding, boxes=self._tensor(box))
        return logits[0, 0].cpu(), float(scores[0, 0])

    def _from_points(
        self, encoded: Encoded, frame: Frame, prompt: SlicePrompt, before: State | None
    ) -> tuple[Tensor, float]:
        points = prompt.foreground + prompt.background
        labels = [1.0] * len(prompt.foreground) + [0.0] * len(prompt.background)
        box = None if prompt.box is None else clip_boxes(np.array([prompt.box]), frame)
        ambiguous = before is None and box is None and len(points) == 1
        mask = before.logits if before is not None and "mask" in self.sam.config.trained_prompts else None
        logits, scores = self.sam.decode(
            encoded.embedding,
            points=self._tensor(np.array([points])) if points else None,
            point_labels=self._tensor(np.array([labels])) if points else None,
            boxes=None if box is None else self._tensor(box),
            masks=None if mask is None else self._tensor(mask.numpy()[None, None]),
            multimask=ambiguous and self.sam.multimask,
        )
        best = int(scores[0].argmax())
        return logits[0, best].cpu(), float(scores[0, best])

    def _tensor(self, values: NDArray[np.floating]) -> Tensor:
        return torch.from_numpy(values).to(self.sam.dense_pe)


def obeyed(logits: Tensor, score: float, encoded: Encoded, prompt: SlicePrompt, frame: Frame) -> State:
    """A model's answer, logits (h, w), made to agree with every click; of clicks alone the clicked parts."""
    logits = correct(logits, encoded.picture, prompt, frame)
    if prompt.foreground and prompt.box is None:
        clicked = np.zeros(logits.shape, bool)
        for point in prompt.foreground:
            clicked[cell_of(point, len(clicked), frame)] = True
        logits = keep_parts(logits, clicked)
    return State(logits.half(), score)


def keep_parts(logits: Tensor, seed: NDArray[np.bool_]) -> Tensor:
    """Logits (h, w) without the connected parts of the mask that do not touch `seed`, unless none does."""
    parts, count = ndimage.label((logits > 0).numpy())
    kept = np.unique(parts[seed])
    if count <= 1 or not kept.any():
        return logits
    return torch.where(torch.from_numpy(np.isin(parts, kept[kept > 0])), logits, -logits.abs())
