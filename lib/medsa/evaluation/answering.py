"""Who answers the simulated annotator: the product's runtime, one question at a time or many at once.

Both give the same masks. Together is what a whole set is measured with: the questions that many dialogues ask
at one time go through the mask decoder in batches, on embeddings that are computed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from medsa.data.orientation import Orientation
from medsa.evaluation.asking import Ask, Dialogue, Mask, Reply
from medsa.segmenter import Segmenter
from medsa.segmenter.request import Request
from medsa.segmenter.session import State
from medsa.segmenter.slices import Asked, Encoded

Answer = Callable[[Sequence[Ask]], list[Reply]]
Kept = dict[Hashable, tuple[Hashable, Encoded]]


def hold(dialogues: Sequence[Dialogue], answer: Answer, told: Callable[[], None] = lambda: None) -> None:
    """Lead all dialogues to their end, in step: each round answers the next question of each.

    `told` is called before each round.
    """
    replies: list[tuple[Dialogue, Reply | None]] = [(dialogue, None) for dialogue in dialogues]
    while replies:
        told()
        asked = [(dialogue, _next(dialogue, reply)) for dialogue, reply in replies]
        waiting = [(dialogue, ask) for dialogue, ask in asked if ask is not None]
        answers = answer([ask for _, ask in waiting])
        replies = [(dialogue, reply) for (dialogue, _), reply in zip(waiting, answers, strict=True)]


def one_by_one(segmenter: Segmenter, asks: Sequence[Ask]) -> list[Reply]:
    """Answers as a user gets them; neither raw ones nor slices in slabs. A volume's time has its encoding."""
    replies = []
    for ask in asks:
        started = time.perf_counter()
        volume, window = ask.target.volume, ask.target.window
        told = segmenter.about(ask.target.label)
        if ask.k is None:
            found = told.segment_volume(volume, ask.prompt, window=window, session=ask.session)
            replies.append(Reply(found.mask != 0, _since(started)))
        else:
            found = told.segment_slice(volume, ask.prompt, ask.k, window=window, session=ask.session)
            encoding = found.timings["encode"]
            replies.append(Reply(found.mask[:, :, ask.k] != 0, _since(started) - encoding, encoding))
    return replies


def together(segmenter: Segmenter, asks: Sequence[Ask], kept: Kept | None = None) -> list[Reply]:
    """The same answers, those about slices decoded together: milliseconds are a part of what all took.

    Slices that were encoded stay in `kept`, whatever the segmenter's cache forgets. Questions about volumes
    are answered one by one.
    """
    kept = {} if kept is None else kept
    replies = {n: one_by_one(segmenter, [ask])[0] for n, ask in enumerate(asks) if ask.k is None}
    told = {ask.target.label: segmenter.about(ask.target.label) for ask in asks}
    for model in dict.fromkeys(told.values()):
        seen = _Seen(model, model.sam.adapter_digest, kept)
        slices = {
            n: seen.slice(ask, ask.k)
            for n, ask in enumerate(asks)
            if ask.k is not None and told[ask.target.label] is model
        }
        started = time.perf_counter()
        with model.decoding.turn(), torch.inference_mode():
            states = model.decoder.decode_many([one.asked for one in slices.values()])
        shared = _since(started) / max(1, len(slices))
        for (n, one), state in zip(slices.items(), states, strict=True):
            started = time.perf_counter()
            mask = one.mask(state)
            replies[n] = Reply(mask, _since(started) + shared, one.request.timings["encode"])
    return [replies[n] for n in range(len(asks))]


@dataclass(frozen=True)
class _Slice:
    """A question about slice k on its way: what `Segmenter.segment_slice` knows before it asks the model."""

    ask: Ask
    k: int
    request: Request
    orientation: Orientation
    asked: Asked
    slice_key: Hashable

    def mask(self, state: State) -> Mask:
        """(I, J) of the answer, which the session remembers."""
        if self.ask.session is not None:
            self.ask.session.remember(self.slice_key, self.asked.prompt, state)
        if not self.ask.raw:
            found = self.request.result({self.orientation.slice_of(self.k): state})
            return found.stored(self.orientation).mask[:, :, self.k] != 0
        logits = self.request.frame.logits_to_voxel(state.logits.float()[None])[0].numpy().T
        return self.orientation.stored((logits > 0)[:, :, None])[:, :, 0]


@dataclass(frozen=True)
class _Seen:
    """A segmenter, the digest of its adapter, and the slices that it has encoded."""

    segmenter: Segmenter
    digest: str
    kept: Kept

    def slice(self, ask: Ask, k: int) -> _Slice:
        """A question on its way, its slice encoded."""
        seen, orientation = self.segmenter.seen(ask.target.volume)
        prompt = orientation.prompt(ask.prompt)
        depth = self.segmenter.depth if ask.target.slabs else 1
        request = Request(
            self.segmenter, seen, prompt, ask.target.window, ask.session, depth, zoom=not ask.raw
        )
        at = orientation.slice_of(k)
        place = seen, at, request.frame
        if place not in self.kept:
            self.kept[place] = request.encoded(at)
        key, encoded = self.kept[place]
        here = request.on_slice(at)
        before = ask.session.recall((key, self.digest), here) if ask.session is not None else None
        asked = Asked(encoded, request.frame, here, before[1] if before else None, ask.raw)
        return _Slice(ask, k, request, orientation, asked, (key, self.digest))


def _next(dialogue: Dialogue, reply: Reply | None) -> Ask | None:
    try:
        return next(dialogue) if reply is None else dialogue.send(reply)
    except StopIteration:
        return None


def _since(started: float) -> float:
    return 1e3 * (time.perf_counter() - started)
