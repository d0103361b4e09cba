"""The simulated annotator before the runtime: all prompts of a protocol on an object, and their masks."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.evaluation.metrics import compare
from medsa.evaluation.overlap import dice
from medsa.evaluation.protocol import chosen_slices
from medsa.prompts.annotator import Click, first_click, loose_box, next_click, tight_box
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Segmenter, Session

Mask = NDArray[np.bool_]

NOC = (0.85, 0.9)
"""Dice that "noc" counts the clicks to."""
CAP = {2: 10, 3: 20}
"""Clicks after which a slice, and a volume, has failed."""


@dataclass(frozen=True)
class Protocol:
    """What is asked: `clicks` after which the mask is kept, `boxes` by their IoU with the tight one, `noc`.

    `tolerance` in mm is that of the surface Dice; `deepest`: the first click is at the deepest point, else
    anywhere in the object.
    """

    clicks: tuple[int, ...] = (1, 3, 10)
    boxes: tuple[float, ...] = (1.0, 0.75, 0.5)
    noc: bool = True
    deepest: bool = False
    tolerance: float = 2.0

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


@dataclass(frozen=True)
class Answers:
    """What came of all prompts on one object: metrics by prompt, further numbers, milliseconds by prompt."""

    prompts: dict[str, dict[str, float]]
    numbers: dict[str, float]
    milliseconds: dict[str, float] = field(default_factory=dict)


def ask_all(
    segmenter: Segmenter, volume: Volume, truth: Mask, k: int | None, protocol: Protocol, seed: Sequence[int]
) -> Answers:
    """Every prompt on the object `truth` (I, J, K) of slice k, or with None of the volume.

    Numbers are "auc", the mean Dice after each click up to the cap, and with `noc` "noc85" and "noc90", where
    a failure counts as the cap.
    """
    wanted = truth if k is None else truth[:, :, k]
    spacing = volume.spacing[: wanted.ndim].tolist()
    found = Answers({}, {})

    def keep(name: str, mask: Mask, started: float) -> None:
        found.milliseconds[name] = 1e3 * (time.perf_counter() - started)
        found.prompts[name] = compare(mask, wanted, spacing, protocol.tolerance)

    if protocol.clicks or protocol.noc:
        curve = []
        for count, (mask, started) in enumerate(_clicked(segmenter, volume, wanted, k, protocol, seed), 1):
            if count in protocol.clicks:
                keep(str(count), mask, started)
            curve.append(dice(mask, wanted))
        found.numbers["auc"] = float(np.mean(curve))
        if protocol.noc:
            for goal in NOC:
                reached = [count for count, value in enumerate(curve, 1) if value >= goal]
                found.numbers[f"noc{round(100 * goal)}"] = float(reached[0] if reached else len(curve))
    for number, iou in enumerate(protocol.boxes):
        rng = np.random.default_rng([*seed, 1, number])
        corners = tight_box(wanted) if iou == 1 else loose_box(wanted, iou, rng)
        started = time.perf_counter()
        keep("box" if iou == 1 else f"box{iou:g}", _ask(segmenter, volume, k, box=corners), started)
    return found


def objects(truth: Mask, slices: int | None) -> list[int | None]:
    """What of a label is asked for: so many of its larger slices, or with None the volume, if it has area."""
    found = chosen_slices(truth, slices or 1)
    return list(found) if slices is not None else [None] * bool(found)


def _clicked(
    segmenter: Segmenter, volume: Volume, wanted: Mask, k: int | None, protocol: Protocol, seed: Sequence[int]
) -> Iterator[tuple[Mask, float]]:
    """The mask after each click up to the cap, and when it was asked for; a right one again and again."""
    rng = None if protocol.deepest else np.random.default_rng([*seed, 0])
    click: Click | None = _first(wanted, k, rng)
    points: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    session, mask, started = Session(), np.zeros_like(wanted), time.perf_counter()
    for _ in range(CAP[wanted.ndim]):
        if click is not None:
            points[click.positive].append(click.index)
            started = time.perf_counter()
            mask = _ask(segmenter, volume, k, points[True], points[False], session=session)
        yield mask, started
        click = next_click(wanted, mask) if click is not None else None


def _first(wanted: Mask, k: int | None, rng: np.random.Generator | None) -> Click:
    """The first click: in a volume on the middle one of the slices that hold the object."""
    if k is not None:
        return first_click(wanted, rng)
    held = np.flatnonzero(wanted.any(axis=(0, 1)))
    middle = int(held[len(held) // 2])
    click = first_click(wanted[:, :, middle], rng)
    return Click((*click.index, middle), click.positive)


def _ask(
    segmenter: Segmenter,
    volume: Volume,
    k: int | None,
    foreground: Sequence[tuple[int, ...]] = (),
    background: Sequence[tuple[int, ...]] = (),
    box: NDArray[np.float64] | None = None,
    session: Session | None = None,
) -> Mask:
    """The mask (I, J) on slice k, or (I, J, K), of points and a box given in as many axes."""

    def placed(values: NDArray[np.float64] | Sequence[tuple[int, ...]]) -> NDArray[np.float64]:
        array = np.array(values, dtype=np.float64)
        if k is None or not array.size:
            return array
        return np.column_stack([array, np.full(len(array), k)])

    prompt = Prompt(placed(foreground), placed(background), None if box is None else placed(box))
    if k is None:
        return segmenter.segment_volume(volume, prompt, session=session).mask != 0
    return segmenter.segment_slice(volume, prompt, k, session=session).mask[:, :, k] != 0
