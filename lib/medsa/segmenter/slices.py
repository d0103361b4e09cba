"""Slices: their prompts, and what is already known of their masks, become logits; one, or many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsa.data.model_input import Frame
from medsa.sam import Promptable
from medsa.sam.promptable import BATCH
from medsa.segmenter.corrections import cell_of, correct
from medsa.segmenter.proposals import CoarseDecoder, best_of_proposals, clip_boxes
from medsa.segmenter.session import Point, SlicePrompt, State


@dataclass(frozen=True)
class Encoded:
    """What is kept of a slice: `embedding` (1, C, h, w) and `picture` (1 or 3, s, s), its colours 0..1."""

    embedding: Tensor
    picture: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.embedding.nbytes + self.picture.nbytes


@dataclass(frozen=True)
class Asked:
    """A slice, and what is asked about it; `before` is the answer to the prompts before.

    `raw`: by the model alone, which is given every prompt as it is, whatever it was trained with; neither
    are clicks obeyed where it does not, nor are boxes tried for a click.
    """

    encoded: Encoded
    frame: Frame
    prompt: SlicePrompt
    before: State | None = None
    raw: bool = False


@dataclass(frozen=True)
class _Question:
    """What the mask decoder is given: points (P, 2) and labels (P,), a box (4,), a mask (h, w)."""

    points: tuple[Point, ...] = ()
    labels: tuple[float, ...] = ()
    box: NDArray[np.float64] | None = None
    mask: Tensor | None = None
    multimask: bool = False

    @property
    def kind(self) -> tuple[int, bool, bool, bool]:
        """Questions of one kind can be asked together."""
        return len(self.points), self.box is not None, self.mask is not None, self.multimask


class SliceDecoder:
    """Prompts to masks on encoded slices, in the way the model's training allows."""

    def __init__(self, sam: Promptable) -> None:
        self.sam = sam
        self.coarse = None if "point" in sam.config.trained_prompts else CoarseDecoder(sam)

    def decode(
        self, encoded: Encoded, frame: Frame, prompt: SlicePrompt, before: State | None = None
    ) -> State:
        """The mask of `prompt`, refining the mask `before` it; every click is obeyed at its own place."""
        return self.decode_many([Asked(encoded, frame, prompt, before)])[0]

    def decode_many(self, asked: Sequence[Asked]) -> list[State]:
        """`decode` of many slices and objects; those that are alike go through the mask decoder together."""
        found: dict[int, tuple[Tensor, float]] = {}
        questions: dict[int, _Question] = {}
        for n, one in enumerate(asked):
            if one.raw or self.coarse is None:
                questions[n] = self._question(one)
            elif one.before is not None:
                found[n] = one.before.logits.float(), one.before.score
            elif one.prompt.box is not None:
                questions[n] = _Question(box=_clipped(one))
            else:
                found[n] = best_of_proposals(
                    self.sam,
                    self.coarse,
                    one.encoded.embedding,
                    one.encoded.picture,
                    one.prompt.foreground[0],
                    one.frame,
                )
        kinds: dict[object, list[int]] = {}
        for n, question in questions.items():
            kinds.setdefault(question.kind, []).append(n)
        for alike in kinds.values():
            for first in range(0, len(alike), BATCH):
                part = alike[first : first + BATCH]
                encoded = [asked[n].encoded for n in part]
                answers = self._answers(encoded, [questions[n] for n in part])
                found.update(zip(part, answers, strict=True))
        return [
            State(found[n][0].half(), found[n][1])
            if one.raw
            else obeyed(*found[n], one.encoded, one.prompt, one.frame)
            for n, one in enumerate(asked)
        ]

    def _question(self, one: Asked) -> _Question:
        prompt, before = one.prompt, one.before
        points = prompt.foreground + prompt.background
        box = None if prompt.box is None else _clipped(one)
        masks = one.raw or "mask" in self.sam.config.trained_prompts
        return _Question(
            points,
            (1.0,) * len(prompt.foreground) + (0.0,) * len(prompt.background),
            box,
            before.logits if before is not None and masks else None,
            before is None and box is None and len(points) == 1 and self.sam.multimask,
        )

    def _answers(
        self, encoded: Sequence[Encoded], questions: Sequence[_Question]
    ) -> list[tuple[Tensor, float]]:
        """Logits (h, w) and predicted IoU for each of some questions of one kind, the best of its masks."""
        kind = questions[0]
        masks = [question.mask for question in questions if question.mask is not None]
        logits, scores = self.sam.decode(
            torch.cat([one.embedding for one in encoded]),
            points=self._tensor([question.points for question in questions]) if kind.points else None,
            point_labels=self._tensor([question.labels for question in questions]) if kind.points else None,
            boxes=self._tensor([question.box for question in questions]) if kind.box is not None else None,
            masks=torch.stack(masks)[:, None].to(self.sam.dense_pe) if masks else None,
            multimask=kind.multimask,
        )
        each, best = torch.arange(len(scores)), scores.argmax(dim=1)
        pictures = torch.stack([one.picture.expand(3, -1, -1) for one in encoded])
        refined = self.sam.refine(logits[each, best][:, None], pictures)[:, 0].cpu()
        return list(zip(refined, scores[each, best].tolist(), strict=True))

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=np.float64)).to(self.sam.dense_pe)


def _clipped(one: Asked) -> NDArray[np.float64]:
    """The box (4,) of a prompt, inside its slice."""
    return clip_boxes(np.array([one.prompt.box]), one.frame)[0]


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
