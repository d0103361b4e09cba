"""The interaction loop of training: a prompt, then clicks in what is wrong, asked as the runtime asks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medsa.adapters.inject import AdaptedSam
from medsa.prompts.annotator import Clicks, first_clicks, next_clicks, tight_boxes
from medsa.prompts.mixture import (
    Interaction,
    PromptMixture,
    mixed_boxes,
    mixed_first_clicks,
    mixed_next_clicks,
)
from medsa.segmenter.corrections import CONFIDENT, cell_of, correct
from medsa.segmenter.session import SlicePrompt
from medsa.segmenter.slices import keep_parts
from medsa.training.items import Item

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Round:
    """An answer: `logits` (N, M, c, c) and `scores` (N, M) with gradient, `shown` (N, c, c) what a user sees.

    `chosen` (N,) is the mask of M that the model's own score picks.
    """

    logits: Tensor
    scores: Tensor
    chosen: Tensor
    shown: Mask


class Annotator(Protocol):
    """Who places the prompts on masks (N, c, c)."""

    def first(self, truth: Mask) -> Clicks: ...
    def further(self, truth: Mask, shown: Mask) -> Clicks: ...
    def boxes(self, truth: Mask) -> NDArray[np.float64]: ...
    def sees_mask(self) -> bool: ...


@dataclass(frozen=True)
class Training:
    """An annotator by the shares of a mixture."""

    mixture: PromptMixture
    rng: np.random.Generator

    def first(self, truth: Mask) -> Clicks:
        return mixed_first_clicks(truth, self.mixture, self.rng)

    def further(self, truth: Mask, shown: Mask) -> Clicks:
        return mixed_next_clicks(truth, shown, self.mixture, self.rng)

    def boxes(self, truth: Mask) -> NDArray[np.float64]:
        return mixed_boxes(truth, self.mixture, self.rng)

    def sees_mask(self) -> bool:
        return bool(self.rng.random() < self.mixture.mask)


class Protocolled:
    """The annotator of the measurements: every click at the deepest point, every box tight."""

    def first(self, truth: Mask) -> Clicks:
        return first_clicks(truth)

    def further(self, truth: Mask, shown: Mask) -> Clicks:
        return next_clicks(truth, shown)

    def boxes(self, truth: Mask) -> NDArray[np.float64]:
        return tight_boxes(truth)

    def sees_mask(self) -> bool:
        return True


class Decoder:
    """A model's decoder for training: folded where that is possible (same masks, half the arithmetic).

    It is for embeddings of `side` cells a side, by default the model's own.
    """

    def __init__(self, model: AdaptedSam, side: int | None = None) -> None:
        self.model = model
        self.folded: dict[bool, nn.Module] = {}
        position = model.dense_pe
        if side is not None:
            position = model.prompt_encoder.pe_layer((side, side))[None].detach()
        with suppress(TypeError):
            self.folded = {many: model.folded_decoder(position, many) for many in (False, True)}

    def about(self, items: Sequence[Item]) -> Decoder:
        """The same when the model is told the labels of N items."""
        told = copy(self)
        told.model = self.model.about([item.label for item in items])
        return told

    def __call__(
        self,
        embedding: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        multimask: bool,
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, M, c, c), predicted IoU (N, M); `embedding` (N, C, h, w)."""
        if not self.folded:
            return self.model.decode(embedding, points, labels, boxes, masks, multimask)
        labelled = None if points is None or labels is None else (points, labels)
        sparse, dense = self.model.prompt_encoder(points=labelled, boxes=boxes, masks=masks)
        dense, told = dense[:1, :, :1, :1] if masks is None else dense, self.model.told
        if told is not None:
            dense = dense + told[:, :, None, None]
        return self.folded[multimask](embedding, dense, sparse)


def interact(
    decoder: Decoder, embedding: Tensor, items: Sequence[Item], interaction: Interaction, annotator: Annotator
) -> Generator[Round, None, None]:
    """One `Round` after another: the first prompts, then up to `interaction.rounds` clicks on what is wrong.

    `embedding` (N, C, h, w), one for each item. Between rounds nothing keeps a graph: go backward from each
    as it comes. Items of which nothing is wrong get no further click.
    """
    prompts = _Prompts(items, embedding)
    decoder = decoder.about(items) if interaction.named else decoder
    truth = np.stack([item.mask for item in items])
    target = np.stack([item.prompted for item in items])
    if interaction.clicks:
        prompts.click(annotator.first(target))
    if interaction.boxes:
        prompts.box(annotator.boxes(target))
    before: Tensor | None = None
    for further in range(interaction.rounds + 1):
        multimask = interaction.start == "click" and further == 0 and decoder.model.multimask
        logits, scores = decoder(embedding, *prompts.tensors(), before, multimask)
        chosen = scores.detach().argmax(dim=1)
        logits = _refined(decoder, logits, chosen, items)
        answers = prompts.served(logits.detach()[torch.arange(len(items)), chosen])
        shown = (answers > 0).cpu().numpy()
        yield Round(logits, scores, chosen, shown)
        if further == interaction.rounds:
            return
        clicks = annotator.further(truth, shown)
        if not clicks.found.any():
            return
        prompts.click(clicks)
        before = answers[:, None].to(embedding) if annotator.sees_mask() else None


def follow(
    decoder: Decoder,
    embedded: Callable[[Sequence[Item]], Tensor],
    items: Sequence[Item],
    length: int,
    annotator: Annotator | None,
    *,
    named: bool = True,
) -> Iterator[tuple[Sequence[Item], Round]]:
    """Along the trails of `items`, slice by slice: the neighbours' items, and the answers to them.

    Each slice is asked for with the answer to the one before alone, as the runtime follows an object; the
    first with a clicked answer, or without an `annotator` with the object itself. At most `length` slices; an
    item whose answer is empty or whose trail is at its end is followed no further. `embedded(items)`
    (N, C, h, w). With `named` the model is told the labels.
    """
    told = decoder.about if named else lambda _: decoder
    going, answers = list(items), _begun(told(items), embedded, items, annotator)
    for place in range(length):
        kept = [n for n, item in enumerate(going) if place < len(item.trail) and bool((answers[n] > 0).any())]
        if not kept:
            return
        going, before = [going[n] for n in kept], answers[kept]
        beside = [item.trail[place] for item in going]
        embedding, asked = embedded(beside), told(beside)
        logits, scores = asked(embedding, None, None, None, before[:, None].to(embedding), False)
        logits = _refined(asked, logits, torch.zeros(len(beside), dtype=torch.long), beside)
        answers = _unpadded(logits.detach()[:, 0], beside)
        yield beside, Round(logits, scores, scores.detach().argmax(dim=1), (answers > 0).numpy())


def _begun(
    decoder: Decoder,
    embedded: Callable[[Sequence[Item]], Tensor],
    items: Sequence[Item],
    annotator: Annotator | None,
) -> Tensor:
    """(N, c, c) what an object is followed from: logits of a clicked answer, or of the truth."""
    truth = np.stack([item.mask for item in items])
    if annotator is None:
        shares = F.avg_pool2d(torch.from_numpy(truth).float()[:, None], 3, 1, 1)[:, 0]
        return _unpadded(CONFIDENT * (2 * shares - 1), items)
    with torch.no_grad():
        prompts = _Prompts(items, embedding := embedded(items))
        prompts.click(annotator.first(truth))
        logits, scores = decoder(embedding, *prompts.tensors(), None, decoder.model.multimask)
        chosen = scores.argmax(dim=1)
        logits = _refined(decoder, logits, chosen, items)
        return prompts.served(logits[torch.arange(len(items)), chosen])


def _refined(decoder: Decoder, logits: Tensor, chosen: Tensor, items: Sequence[Item]) -> Tensor:
    """Logits (N, M, c, c) of items, the `chosen` (N,) of each mended as the runtime does."""
    if not decoder.model.refines:
        return logits
    pictures = torch.stack([item.colours.expand(3, -1, -1) for item in items]).to(logits)
    each = torch.arange(len(items))
    return logits.index_put(
        (each, chosen), decoder.model.refine(logits[each, chosen][:, None], pictures)[:, 0]
    )


def _unpadded(logits: Tensor, items: Sequence[Item]) -> Tensor:
    """Logits (N, c, c) without what lies in the padding; float16 on the CPU."""
    alone = zip(logits.float().cpu(), items, strict=True)
    return torch.stack([item.picture.frame.unpadded(answer) for answer, item in alone]).half()


class _Prompts:
    """What was asked so far of N items: points (x, y) and boxes in model pixels."""

    def __init__(self, items: Sequence[Item], like: Tensor) -> None:
        self.items, self.like = items, like
        self.points: list[dict[bool, list[tuple[float, float]]]] = [{True: [], False: []} for _ in items]
        self.boxes: NDArray[np.float64] | None = None

    def click(self, clicks: Clicks) -> None:
        for n, item in enumerate(self.items):
            if clicks.found[n]:
                cell = item.picture.frame.size / item.side
                y, x = (clicks.index[n] + 0.5) * cell - 0.5
                self.points[n][bool(clicks.positive[n])].append((float(x), float(y)))

    def box(self, boxes: NDArray[np.float64]) -> None:
        """Boxes (N, 2, 2) of cells (row, column), both corners inclusive."""
        cell = self.items[0].picture.frame.size / self.items[0].side
        low, high = boxes[:, 0] * cell, (boxes[:, 1] + 1) * cell - 1
        self.boxes = np.concatenate([low[:, ::-1], high[:, ::-1]], axis=1)

    def tensors(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Points (N, P, 2), their labels (N, P), boxes (N, 4): on the object first, as the runtime does.

        Who has fewer points than others gets labels of -1, which the prompt encoder takes for none.
        """
        boxes = None if self.boxes is None else torch.from_numpy(self.boxes).to(self.like)
        most = max(len(point[True]) + len(point[False]) for point in self.points)
        if not most:
            return None, None, boxes
        points, labels = np.zeros((len(self.items), most, 2)), -np.ones((len(self.items), most))
        for n, given in enumerate(self.points):
            placed = given[True] + given[False]
            points[n, : len(placed)] = np.array(placed).reshape(-1, 2)
            labels[n, : len(placed)] = [1.0] * len(given[True]) + [0.0] * len(given[False])
        return torch.from_numpy(points).to(self.like), torch.from_numpy(labels).to(self.like), boxes

    def served(self, logits: Tensor) -> Tensor:
        """What the runtime makes of logits (N, c, c): clicks obeyed, other parts gone; float16."""
        answers = _unpadded(logits, self.items).float()
        for n, item in enumerate(self.items):
            answers[n] = self._settled(answers[n], item, self.points[n])
        return answers.half()

    def _settled(self, logits: Tensor, item: Item, points: dict[bool, list[tuple[float, float]]]) -> Tensor:
        frame = item.picture.frame
        clicked = np.zeros(logits.shape, bool)
        for point in points[True]:
            clicked[cell_of(point, item.side, frame)] = True
        spilled = any(logits[cell_of(point, item.side, frame)] > 0 for point in points[False])
        if spilled or (logits[torch.from_numpy(clicked)] <= 0).any():
            prompt = SlicePrompt(tuple(points[True]), tuple(points[False]))
            logits = correct(logits, item.colours, prompt, frame)
        return keep_parts(logits, clicked) if points[True] and self.boxes is None else logits
