"""The simulated annotator's side of a conversation: all prompts of a protocol on one object.

Who answers is not known here: a dialogue hands out a question and goes on when it is given the mask, so that
those of many objects can be held at once (`medsa.evaluation.answering`).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.evaluation.metrics import compare
from medsa.evaluation.overlap import dice
from medsa.evaluation.protocol import background_point, chosen_slices
from medsa.prompts.annotator import Click, first_click, loose_box, next_click, tight_box
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Session

Mask = NDArray[np.bool_]

NOC = (0.85, 0.9)
"""Dice that "noc" counts the clicks to."""
CAP = {2: 10, 3: 20}
"""Clicks after which a slice, and a volume, has failed."""


@dataclass(frozen=True)
class Protocol:
    """What is asked: `clicks` after which the mask is kept, `boxes` by their IoU with the tight one, `noc`.

    `tolerance` in mm is that of the surface Dice; `deepest`: the first click is at the deepest point, else
    anywhere in the object. `anywhere`: further clicks are anywhere in the largest wrong region, else at its
    deepest point. `background`: a click far away from the object is asked, too. `raw`: the model is
    asked by itself, without what the runtime makes of prompts and answers. `afresh`: with further clicks it
    is not shown its mask before them. `slabs`: a model with depth sees a slice in its slabs, as it does in
    volumes; else alone, as a user's first click on it is answered.
    """

    clicks: tuple[int, ...] = (1, 3, 10)
    boxes: tuple[float, ...] = (1.0, 0.75, 0.5)
    noc: bool = True
    deepest: bool = False
    tolerance: float = 2.0
    anywhere: bool = False
    background: bool = False
    raw: bool = False
    afresh: bool = False
    slabs: bool = False

    @classmethod
    def of(cls, text: str, *, deepest: bool = False, tolerance: float = 2.0) -> Protocol:
        """From "1,3,10,box,box0.75,noc"; raises `BadInputError` for what is none of these."""
        clicks, boxes, noc = set[int](), set[float](), False
        for word in filter(None, (part.strip() for part in text.split(","))):
            box = re.fullmatch(r"box(0?\.\d+|1(?:\.0*)?)?", word)
            if word == "noc":
                noc = True
            elif box and 0.2 <= float(box[1] or 1) <= 1:
                boxes.add(float(box[1] or 1))
            elif word.isdecimal() and 1 <= int(word) <= CAP[2]:
                clicks.add(int(word))
            else:
                raise BadInputError(
                    f"unknown prompt '{word}': take numbers of clicks (1 to {CAP[2]}), box, box0.75 and noc"
                )
        if not (clicks or boxes or noc):
            raise BadInputError("no prompt is asked for: take some of 1,3,10,box,box0.75,box0.5,noc")
        return cls(tuple(sorted(clicks)), tuple(sorted(boxes, reverse=True)), noc, deepest, tolerance)

    @property
    def names(self) -> list[str]:
        """The prompts whose masks are kept, in the order of tables."""
        return [*map(str, self.clicks), *map(box_name, self.boxes)]


@dataclass(frozen=True)
class Target:
    """An object to be found: `truth` (I, J) on slice k of a volume, or (I, J, K) in all of it with None.

    `window` is how the volume is looked at, `label` what the model is told that it is, if anything; with
    `slabs` a model with depth sees slices in their slabs.
    """

    volume: Volume
    truth: Mask
    k: int | None
    window: str = "auto"
    label: str = ""
    slabs: bool = False

    @property
    def spacing(self) -> list[float]:
        """Millimetres along the axes of `truth`."""
        return self.volume.spacing[: self.truth.ndim].tolist()


@dataclass(frozen=True)
class Ask:
    """A question: `prompt` about slice k of the target's volume, or with None about all of it.

    `session` remembers the clicks before; `raw` asks the model by itself.
    """

    target: Target
    prompt: Prompt
    k: int | None
    session: Session | None = None
    raw: bool = False


@dataclass(frozen=True)
class Reply:
    """The mask (I, J) of a slice, or (I, J, K), and milliseconds: of the answer and of a slice's encoding."""

    mask: Mask
    milliseconds: float
    encoding: float = 0.0


Dialogue = Generator[Ask, Reply, None]


@dataclass(frozen=True)
class Answers:
    """What came of all prompts on one object: metrics by prompt, further numbers, milliseconds by prompt.

    Numbers are "auc", the mean Dice after each click up to the cap, where so many are made, with `noc`
    "noc85" and "noc90", where a failure counts as the cap, and "background", the Dice of the object with the
    model's own answer to a click far away from it: near 0 where the model listens.
    """

    prompts: dict[str, dict[str, float]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)


def dialogues(target: Target, protocol: Protocol, seed: Sequence[int], found: Answers) -> list[Dialogue]:
    """The conversations of a protocol about one object; what they come to is written into `found`."""
    held = [_box(target, protocol, seed, number, found) for number in range(len(protocol.boxes))]
    if protocol.clicks or protocol.noc:
        held.append(_clicks(target, protocol, seed, found))
    if protocol.background:
        held.append(_background(target, seed, found))
    return held


def box_name(iou: float) -> str:
    """What a box of this IoU with the tight one is called."""
    return "box" if iou == 1 else f"box{iou:g}"


def objects(truth: Mask, slices: int | None) -> list[int | None]:
    """What of a label is asked for: so many of its larger slices, or with None the volume, if it has area."""
    found = chosen_slices(truth, slices or 1)
    return list(found) if slices is not None else [None] * bool(found)


def _clicks(target: Target, protocol: Protocol, seed: Sequence[int], found: Answers) -> Dialogue:
    """Clicks up to the cap, or the last that is kept, each where the mask before it is most wrong.

    A right mask stays as it is.
    """
    cap = CAP[target.truth.ndim]
    last = cap if protocol.noc else min(cap, max(protocol.clicks))
    rng = None if protocol.deepest else np.random.default_rng([*seed, 0])
    further = np.random.default_rng([*seed, 3]) if protocol.anywhere else None
    click: Click | None = _first(target, rng)
    points: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    session, curve = None if protocol.afresh else Session(), list[float]()
    reply = Reply(np.zeros_like(target.truth), 0.0)
    for count in range(1, last + 1):
        if click is not None:
            points[click.positive].append(click.index)
            prompt = Prompt(_placed(points[True], target.k), _placed(points[False], target.k))
            reply = yield Ask(target, prompt, target.k, session, protocol.raw)
            click = next_click(target.truth, reply.mask, further)
            curve.append(dice(reply.mask, target.truth))
        else:
            curve.append(curve[-1])
        if count in protocol.clicks:
            _keep(str(count), reply, target, protocol, found)
    if last == cap:
        found.numbers["auc"] = float(np.mean(curve))
    for goal in NOC if protocol.noc else ():
        reached = [count for count, value in enumerate(curve, 1) if value >= goal]
        found.numbers[f"noc{round(100 * goal)}"] = float(reached[0] if reached else len(curve))


def _box(target: Target, protocol: Protocol, seed: Sequence[int], number: int, found: Answers) -> Dialogue:
    iou, rng = protocol.boxes[number], np.random.default_rng([*seed, 1, number])
    corners = tight_box(target.truth) if iou == 1 else loose_box(target.truth, iou, rng)
    prompt = Prompt(box=_placed(corners, target.k))
    reply = yield Ask(target, prompt, target.k, raw=protocol.raw)
    _keep(box_name(iou), reply, target, protocol, found)


def _background(target: Target, seed: Sequence[int], found: Answers) -> Dialogue:
    """One click where the object is not, on its slice, or the middle one of those that hold it."""
    k = _middle(target.truth) if target.k is None else target.k
    truth = target.truth[:, :, k] if target.k is None else target.truth
    point = background_point(truth, np.random.default_rng([*seed, 2]))
    if point is not None:
        prompt = Prompt(_placed([point], k))
        reply = yield Ask(target, prompt, k, raw=True)
        found.numbers["background"] = dice(reply.mask, truth)


def _keep(name: str, reply: Reply, target: Target, protocol: Protocol, found: Answers) -> None:
    found.milliseconds[name] = reply.milliseconds
    if reply.encoding:
        found.milliseconds["encode"] = reply.encoding
    found.prompts[name] = compare(reply.mask, target.truth, target.spacing, protocol.tolerance)


def _first(target: Target, rng: np.random.Generator | None) -> Click:
    """The first click: in a volume on the middle one of the slices that hold the object."""
    if target.k is not None:
        return first_click(target.truth, rng)
    middle = _middle(target.truth)
    click = first_click(target.truth[:, :, middle], rng)
    return Click((*click.index, middle), click.positive)


def _middle(truth: Mask) -> int:
    held = np.flatnonzero(truth.any(axis=(0, 1)))
    return int(held[len(held) // 2])


def _placed(points: NDArray[np.float64] | Sequence[tuple[int, ...]], k: int | None) -> NDArray[np.float64]:
    """Points (N, 2) of slice k, or (N, 3), as a prompt holds them."""
    array = np.array(points, dtype=np.float64)
    return array if k is None or not array.size else np.column_stack([array, np.full(len(array), k)])
