"""One object through a volume: what a user says about some slices becomes a mask on all that hold it.

The slices that the first prompts lie on are anchors, answered as slices are; from them the object is
followed: by a model that has learnt to, which is asked with the neighbour's mask, or else by memory; then the
model is asked about each slice that was found so, and where one that has learnt denies it the object has
ended. Every further click corrects what was found, on its slice and around it, and settles its slice: nothing
that is computed later changes a slice that the user has spoken about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from medsa.prompts.annotator import first_click
from medsa.segmenter.corrections import cell_of, correct
from medsa.segmenter.memory import Known, carry_over, look_of, share_of, sureness
from medsa.segmenter.propagate import follow_through, stop_if
from medsa.segmenter.proposals import mask_box
from medsa.segmenter.request import Request
from medsa.segmenter.session import Answer, Point, SlicePrompt, State
from medsa.segmenter.slices import keep_parts
from medsa.segmenter.space import Spot, spread
from medsa.segmenter.tones import Tones, same_object, tones_of

GOES_ON, GOES_ON_INSIDE = 0.4, 0.15
"""Predicted IoU of a model's answer to the neighbour's mask, below which the object has ended.

A box in space tells how far it goes: inside one only an answer that hardly is one ends it."""
SURE = 0.6
"""Mean share (0.5..1) of what is carried to a slice, below which the object has ended there."""
ALIKE = 0.5
"""Dice of a followed mask and the model's answer to its box, below which the model means something else."""
MODELS_PART = 0.4
"""How much the model's answer to the box of a mask that memory found counts beside that mask, 0..1."""
LOOKED_AGAIN = 0.8
"""How much a model that has learnt to follow is believed when it is asked again with its own mask, 0..1."""
CORRECTED = 0.5
"""How much it is believed about a slice that was corrected in space, 0..1; the less the farther beside it."""
AROUND = 4
"""Slices on each side of a corrected one that it is asked about."""
LEAP = 0.2
"""Dice of the masks of two neighbouring slices, below which the model has gone over to something else."""
BESIDE = 2
"""Slices from what was found to a click, at most, for the model to be shown what was found with the click."""
WAIST, GROWN = 0.1, 1.5
"""Where less than this part of its largest slice is left it has ended: what grows so much is another."""
MOST = 8.0
"""Logits are cut to plus and minus this where two answers are mixed."""
NOTHING = SlicePrompt()


class Following:
    """A request on its way through its volume."""

    def __init__(
        self,
        request: Request,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.request = request
        self.progress, self.cancelled = progress, cancelled
        self._unseen: set[int] = set()

    def answer(self, before: tuple[SlicePrompt, Answer] | None = None) -> Answer:
        """The answer to all prompts; `before` are fewer of them, and what was answered to those."""
        clicks = clicks_of(self.request)
        said, answer = before or (SlicePrompt(), self._begun())
        refined = answer.settled == answer.anchors and fresh_slices(clicks, said) <= answer.anchors
        if self.request.start is None and (before is None or refined):
            anchors = {k: self._asked(k) for k in sorted(answer.anchors)}
            states = self._followed(anchors, self._bounds(anchors))
            answer = Answer(states, answer.anchors, answer.anchors)
            said = SlicePrompt(_on(clicks.foreground, anchors), _on(clicks.background, anchors))
        for k in sorted(fresh_slices(clicks, said)):
            stop_if(self.cancelled)
            answer = self._corrected(answer, k, said)
        return answer

    def _begun(self) -> Answer:
        """What there is before any prompt: a mask to begin with, or only the slices to start from.

        Those are the ones with a click, that of a flat box, or the middle of a box.
        """
        request = self.request
        if request.start is not None:
            states = {k: request.start.state(k, request.frame, request.cells) for k in request.start.slices}
            return Answer(states, frozenset(), frozenset())
        prompt = request.prompt
        starts = {int(k) for k in np.rint(prompt.foreground[:, 2])}
        if prompt.box is not None and (not starts or request.bounds is None):
            starts.add(int(np.rint(prompt.box[:, 2].clip(0, request.volume.shape[2] - 1).mean())))
        return Answer({}, frozenset(starts), frozenset())

    def _asked(self, k: int) -> State:
        """The mask of slice k's own prompts; a box in space is larger than what it holds there."""
        stop_if(self.cancelled)
        state = self._bounded(self.request.answer(k))
        loose = self.request.bounds is not None and not self.request.on_slice(k).foreground
        return self._looked_again(k, state) if self.learnt and loose else state

    def _followed(self, anchors: Mapping[int, State], bounds: tuple[int, int]) -> dict[int, State]:
        states = follow_through(
            anchors, bounds, self._step, mixed, progress=self.progress, cancelled=self.cancelled
        )
        again = self._looked_again if self.learnt else self._asked_again
        states = {k: state if k in anchors else again(k, state) for k, state in states.items()}
        if self.learnt:
            states = self._sure(states, anchors)
            for k, way in ((min(anchors), -1), (max(anchors), 1)):
                states = tapering(states, k, way)
        return states

    def _sure(self, states: Mapping[int, State], anchors: Collection[int]) -> dict[int, State]:
        """`states` as far as the second look goes on: beyond a slice that it denies, another object began.

        But for a slice that does not show the object, and was mixed of those on both sides.
        """
        low, high = self._bounds(anchors)
        for k, state in states.items():
            if state.score < self._least and k not in self._unseen:
                low = max(low, k + 1) if k < min(anchors) else low
                high = min(high, k - 1) if k > max(anchors) else high
        return {k: state for k, state in states.items() if low <= k <= high}

    @property
    def _least(self) -> float:
        """Predicted IoU below which the object has ended."""
        return GOES_ON if self.request.bounds is None else GOES_ON_INSIDE

    def _looked_again(self, k: int, state: State) -> State:
        """A slice as the model sees it, mixed with its answer to that."""
        stop_if(self.cancelled)
        return self._bounded(mixed(state, self._shown(k, state), LOOKED_AGAIN))

    def _asked_again(self, k: int, state: State) -> State:
        """A slice that memory found, mixed with what the model says to the box around it, if it is alike."""
        stop_if(self.cancelled)
        if not state.mask.any():
            return state
        request = self.request
        box = mask_box(state.mask, request.frame.size / len(state.mask), request.frame)
        encoded, prompt = request.encoded(k)[1], SlicePrompt(box=tuple(map(float, box)))
        with request.decoding():
            answer = request.segmenter.decoder.decode(encoded, request.frame, prompt)
        if answer.agreement(state) < ALIKE:
            return state
        found = mixed(state, answer, MODELS_PART)
        kept = keep_parts(found.logits.float(), state.mask)
        return self._bounded(replace(found, logits=kept.half()))

    def _bounds(self, anchors: Iterable[int]) -> tuple[int, int]:
        """First and last slice that the object may reach: those of a box in space, else all."""
        last, bounds = self.request.volume.shape[2] - 1, self.request.bounds
        if bounds is None:
            return 0, last
        low, high = np.rint(bounds[:, 2]).clip(0, last).astype(int)
        return min(int(low), *anchors), max(int(high), *anchors)

    def _step(self, k: int, beside: int, neighbour: State) -> State | None:
        """The object on slice k, from what it is on the slice beside; None where it is not seen."""
        if not neighbour.mask.any():
            return None
        found = self._led(k, neighbour) if self.learnt else self._remembered(k, beside, neighbour)
        if found is None:
            self._unseen.add(k)
        return found

    @property
    def learnt(self) -> bool:
        """Whether the model has learnt to follow an object from slice to slice."""
        return "neighbour" in self.request.segmenter.sam.config.trained_prompts

    def _led(self, k: int, neighbour: State) -> State | None:
        """The model's answer on slice k to the neighbour's mask."""
        answer = self._shown(k, neighbour)
        logits = keep_parts(answer.logits.float(), neighbour.mask)
        state = self._bounded(replace(answer, logits=logits.half()))
        seen = answer.score >= self._least and state.mask.any()
        return state if seen and state.agreement(neighbour) >= LEAP else None

    def _shown(self, k: int, state: State, clicks: SlicePrompt = NOTHING) -> State:
        """The model's answer on slice k to the mask of `state` and clicks.

        It has learnt what lies beside an object from a click in it: where nobody made one, it is shown one.
        """
        request = self.request
        if clicks.background and not clicks.foreground and state.mask.any():
            clicks = replace(clicks, foreground=(self._inside(state),))
        encoded, frame = request.encoded(k)[1], request.frame
        shown = replace(state, logits=frame.unpadded(state.logits))
        with request.decoding():
            return request.segmenter.decoder.decode(encoded, frame, clicks, shown)

    def _remembered(self, k: int, beside: int, neighbour: State) -> State | None:
        """What memory finds on slice k."""
        here, there = (look_of(self.request.encoded(at)[1]) for at in (k, beside))
        memory = [Known(there, share_of(neighbour, there.shape[-1]))]
        logits = keep_parts(carry_over(here, memory, neighbour.logits.shape[-1]), neighbour.mask)
        sure = sureness(logits)
        state = self._bounded(State(logits.half(), sure))
        if sure < SURE or not state.mask.any():
            return None
        return state if same_object(self._tones(k, state), self._tones(beside, neighbour)) else None

    def _tones(self, k: int, state: State) -> Tones | None:
        return tones_of(state.mask, self.request.pixels(k, len(state.mask)))

    def _corrected(self, answer: Answer, k: int, said: SlicePrompt) -> Answer:
        """The answer when the clicks on slice k have their way; those `said` before have had it."""
        if k not in answer.states:
            return self._continued(answer, k) if self.request.on_slice(k).foreground else answer
        states = dict(answer.states)
        side = states[k].logits.shape[-1]
        then = said.foreground + said.background
        spots = [spot for spot in self._spots(side) if spot.k == k and spot.at not in then]
        for spot in spots:
            states |= self._moved(states, spot, answer.settled - {k}, side)
        if self.learnt and self.request.start is None and states[k].mask.any():
            turned = {m: self._turning(spots, answer.states[m], states[m]) for m in answer.states}
            states |= dict(self._refined(states, k, answer.settled, turned))
        return replace(answer, states=dict(sorted(states.items())), settled=answer.settled | {k})

    def _moved(
        self, states: Mapping[int, State], spot: Spot, settled: Collection[int], side: int
    ) -> dict[int, State]:
        """The states that a click contradicting them changes."""
        request = self.request
        logits = {m: state.logits.float().numpy() for m, state in states.items()}
        others = [other for other in self._spots(side) if other.positive != spot.positive]
        changed = spread(
            logits,
            lambda m: request.pixels(m, side) / 255,
            spot,
            others,
            request.millimetres(side),
            depth=request.volume.shape[2],
            fixed=settled,
        )
        low, high = self._bounds(states)
        return {
            m: self._bounded(State(torch.from_numpy(values).half(), states.get(m, states[spot.k]).score))
            for m, values in changed.items()
            if low <= m <= high
        }

    def _turning(self, spots: Iterable[Spot], before: State, after: State) -> SlicePrompt:
        """Those of the clicks on another slice that turned their place on this one, too."""
        side = len(after.mask)
        points: dict[bool, list[Point]] = {True: [], False: []}
        for spot in spots:
            place = spot.row, spot.column
            if before.mask[place] != spot.positive and after.mask[place] == spot.positive:
                points[spot.positive].append(self._centre(*place, side))
        return SlicePrompt(tuple(points[True]), tuple(points[False]))

    def _refined(
        self,
        states: Mapping[int, State],
        k: int,
        settled: Collection[int],
        turned: Mapping[int, SlicePrompt],
    ) -> Iterator[tuple[int, State]]:
        """Slice k, corrected in space, as the model sees it with its clicks; from there those beside it.

        `turned` are the clicks that speak on those as well.
        """
        request = self.request
        clicks = replace(request.on_slice(k), box=None)
        here = mixed(states[k], self._shown(k, states[k], clicks), CORRECTED)
        kept = correct(here.logits.float(), request.encoded(k)[1].picture, clicks, request.frame)
        yield k, (here := self._bounded(replace(here, logits=kept.half())))
        for way in (1, -1):
            beside = here
            for far in range(1, AROUND + 1):
                stop_if(self.cancelled)
                if (at := k + far * way) not in states or at in settled:
                    break
                clicks = turned.get(at, NOTHING)
                part = CORRECTED * (1 - far / (AROUND + 1) if clicks == NOTHING else 1)
                answer = self._shown(at, beside, clicks)
                if answer.agreement(states[at]) < ALIKE:
                    break
                yield at, (beside := self._bounded(mixed(states[at], answer, part)))

    def _inside(self, state: State) -> Point:
        """The deepest point (x, y) of a slice's mask, in model pixels: a click that is not contradicted."""
        row, column = first_click(state.mask).index
        return self._centre(row, column, len(state.mask))

    def _centre(self, row: int, column: int, side: int) -> Point:
        """The middle (x, y) of a cell of a mask of `side`, in model pixels."""
        cell = self.request.frame.size / side
        return (column + 0.5) * cell - 0.5, (row + 0.5) * cell - 0.5

    def _continued(self, answer: Answer, k: int) -> Answer:
        """The answer when the object is on slice k too, where it had not been found: followed from there."""
        low, high = self._bounds([k])
        low = max([low, *(m + 1 for m in answer.states if m < k)])
        high = min([high, *(m - 1 for m in answer.states if m > k)])
        holding = (m for m, state in answer.states.items() if state.mask.any())
        near = min(holding, key=lambda m: abs(m - k), default=None)
        if self.learnt and near is not None and abs(near - k) <= BESIDE:
            clicks, beside = replace(self.request.on_slice(k), box=None), answer.states[near]
            begun = self._shown(k, beside, clicks)
            if begun.mask.sum() > GROWN * beside.mask.sum():  # it means another object
                picture = self.request.encoded(k)[1].picture
                kept = correct(beside.logits.float(), picture, clicks, self.request.frame)
                begun = replace(beside, logits=kept.half())
            begun = self._bounded(begun)
            found = tapering(self._followed({k: begun}, (low, high)), k, 1 if k > near else -1, np.inf)
        else:
            found = self._followed({k: self._asked(k)}, (low, high))
        states = {**answer.states, **found}
        return replace(answer, states=dict(sorted(states.items())), settled=answer.settled | {k})

    def _spots(self, side: int) -> list[Spot]:
        """All clicks, in cells of a mask of `side`."""
        frame, prompt = self.request.frame, self.request.prompt
        spots = []
        for points, whole, positive in (
            (prompt.foreground, clicks_of(self.request).foreground, True),
            (prompt.background, clicks_of(self.request).background, False),
        ):
            for point, at in zip(frame.points_to_model(points[:, :2]), whole, strict=True):
                row, column = cell_of(tuple(point), side, frame)
                spots.append(Spot(int(at[2]), row, column, positive, at))
        return spots

    def _bounded(self, state: State) -> State:
        """`state` without what lies outside a box in space."""
        bounds = self.request.bounds
        if bounds is None:
            return state
        frame, side = self.request.frame, state.logits.shape[-1]
        x0, y0, x1, y1 = frame.boxes_to_model(bounds[:, :2].reshape(4))
        centres = (np.arange(side) + 0.5) * frame.size / side - 0.5
        rows, columns = ((low - 1 < centres) & (centres < high + 1) for low, high in ((y0, y1), (x0, x1)))
        inside = torch.from_numpy(np.outer(rows, columns))
        return replace(state, logits=torch.where(inside, state.logits, -state.logits.abs()))


def clicks_of(request: Request) -> SlicePrompt:
    """All prompts of a request, in voxels of the volume, points (i, j, k) with k rounded."""

    def points(values: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
        return tuple((float(i), float(j), float(np.rint(k))) for i, j, k in values)

    box = request.prompt.box if request.bounds is None else request.bounds
    corners = None if box is None else tuple(map(float, box.reshape(6)))
    return SlicePrompt(points(request.prompt.foreground), points(request.prompt.background), corners)


def mixed(one: State, other: State, part: float) -> State:
    """Two answers to one slice in one, `part` (0..1) of it the other; less sure the less they agree."""
    here, there = (state.logits.float().clamp(-MOST, MOST) for state in (one, other))
    logits = (1 - part) * here + part * there
    score = (1 - part) * one.score + part * other.score
    return State(logits.half(), score * one.agreement(other))


def tapering(states: Mapping[int, State], k: int, way: int, most: float = 0) -> dict[int, State]:
    """`states` without those beyond the end: seen from slice k in the direction `way` (1 or -1).

    There nearly nothing is left of the largest slice, at least of area `most`, and then it grows again.
    """
    at, end, least = k, k, np.inf
    while at in states:
        area = int(states[at].mask.sum())
        if least <= WAIST * most and area > GROWN * least:
            return {m: state for m, state in states.items() if (m - end) * way <= 0}
        if area <= least or area > most:
            end, least = at, area
        most, at = max(most, area), at + way
    return dict(states)


def fresh_slices(now: SlicePrompt, said: SlicePrompt) -> set[int]:
    """The slices of the points that were not among those `said`."""
    then = said.foreground + said.background
    return {int(point[2]) for point in now.foreground + now.background if point not in then}


def _on(points: Iterable[tuple[float, ...]], slices: Collection[int]) -> tuple[tuple[float, ...], ...]:
    return tuple(point for point in points if int(point[2]) in slices)
