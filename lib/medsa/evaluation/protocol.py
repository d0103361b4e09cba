"""The prompt protocol: Dice after each simulated click and with a box, as users get it, and its controls.

Rows are kept by case, so that two models are compared on the same objects, patient by patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsa.data.model_input import Frame, picture_of, slice_input
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.evaluation.overlap import dice
from medsa.prompts.annotator import first_click, next_click, tight_box
from medsa.prompts.prompt import Prompt
from medsa.sam import Promptable
from medsa.segmenter import Segmenter, Session
from medsa.segmenter.slices import Encoded

CLICKS = 10
"""Clicks of a curve; `auc` is the mean Dice after each of them."""
AFTER = (1, 3, 10)
"""Numbers of clicks whose Dice is kept, as "1 pt", "3 pts", "10 pts"."""
FAR = 0.25
"""A background click keeps this part of the slice's diagonal away from the object, where it can."""
WHOLE = -1
"""The `k` of a row about a whole volume."""
FEWEST = 3
"""Slices that hold an object which is asked for through its volume."""

Mask = NDArray[np.bool_]


class Case(Protocol):
    """An image with its label; `patient` says whose it is, `id` which image."""

    @property
    def id(self) -> str: ...

    @property
    def patient(self) -> str: ...

    def read(self) -> tuple[Volume, NDArray[np.uint8], Mapping[int, str]]:
        """The image, a mask (I, J, K) on its grid, and the names of the mask's values."""


@dataclass(frozen=True)
class Row:
    """One object on one slice: `values` are "1 pt", "3 pts", "10 pts", "auc", "box" and "background".

    "background" is the Dice of the labelled object with the model's own answer to a click far away from it: a
    model that listens is near 0, one that segments its favourite organ wherever one clicks is near "1 pt".
    With a `k` of `WHOLE` it is the object in all its slices, and the value "volume", from one click.
    """

    patient: str
    case: str
    label: str
    k: int
    values: Mapping[str, float]

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes two models' rows a pair."""
        return self.patient, self.case, self.label, self.k


Rows = Sequence[Row]


def measure(
    segmenters: Mapping[str, Segmenter],
    cases: Iterable[Case],
    *,
    slices: int = 2,
    volumes: int = 0,
    seed: int = 0,
    window: str = "auto",
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, tuple[Row, ...]]:
    """The rows of every segmenter on the same slices, prompts and background clicks; each case is read once.

    Models that have learnt the labels are told them.

    `slices` of each label are taken at even steps through its larger ones, and in the first so many `volumes`
    each label is followed through all of them, too. First clicks are at the deepest point. `progress(done)`
    counts cases. Reading may raise what the cases raise. Rows keep the patients and ids of the cases as they
    are: where rows are written down, give cases with hashed ones.
    """
    rows: dict[str, list[Row]] = {name: [] for name in segmenters}
    for number, case in enumerate(cases):
        volume, mask, names = case.read()
        encoded: dict[tuple[int, str], Encoded] = {}
        followed = False
        for value, label in sorted(names.items()):
            truth = mask == value
            chosen = chosen_slices(truth, slices)
            told = {name: segmenter.about(label) for name, segmenter in segmenters.items()}
            for k in chosen:
                aside = background_point(truth[:, :, k], np.random.default_rng([seed, value, k]))
                for name, segmenter in told.items():
                    values = _clicked(segmenter, volume, truth[:, :, k], k, window)
                    values["box"] = _boxed(segmenter, volume, truth[:, :, k], k, window)
                    if aside is not None:
                        key = k, segmenter.sam.encoder_digest
                        if key not in encoded:
                            encoded[key] = _encode(segmenter, volume, k, window)
                        answer = own_answer(segmenter.sam, encoded[key], volume, aside)
                        values["background"] = dice(answer, truth[:, :, k])
                    rows[name].append(Row(case.patient, case.id, label, k, values))
            if volumes and chosen and truth.any(axis=(0, 1)).sum() >= FEWEST:
                for name, segmenter in told.items():
                    values = {"volume": _followed(segmenter, volume, truth, window)}
                    rows[name].append(Row(case.patient, case.id, label, WHOLE, values))
                followed = True
        volumes -= int(followed)
        progress(number + 1)
    return {name: tuple(found) for name, found in rows.items()}


def chosen_slices(truth: Mask, most: int) -> list[int]:
    """At most so many k at even steps through the slices with at least half of the object's largest area.

    `truth` (I, J, K). Objects without area (a line of voxels, as a box cannot be drawn around) do not count.
    """
    areas = truth.sum(axis=(0, 1))
    wide = truth.any(axis=0).sum(axis=0) >= 2
    high = truth.any(axis=1).sum(axis=0) >= 2
    large = np.flatnonzero((areas >= max(1, areas.max(initial=0) / 2)) & wide & high)
    steps = (np.arange(min(most, len(large))) + 0.5) * len(large) / max(1, min(most, len(large)))
    return large[steps.astype(int)].tolist()


def background_point(truth: Mask, rng: np.random.Generator) -> tuple[int, int] | None:
    """A random voxel (i, j) far away from the object; None where the object leaves no room."""
    away = ndimage.distance_transform_edt(~truth)
    far = np.argwhere(away >= min(FAR * float(np.linalg.norm(truth.shape)), away.max()))
    if not truth.any() or away.max() < 2:
        return None
    i, j = far[rng.integers(len(far))]
    return int(i), int(j)


def _encode(segmenter: Segmenter, volume: Volume, k: int, window: str) -> Encoded:
    sam, (seen, orientation) = segmenter.sam, segmenter.seen(volume)
    frame = Frame.of(seen, sam.config, sam.image_size)
    at, shown = orientation.slice_of(k), segmenter.window(volume, window)
    image = slice_input(seen, at, shown, sam.config, frame)
    with torch.inference_mode():
        return Encoded(sam.encode(image.to(sam.dense_pe)), picture_of(image, volume.is_rgb))


def own_answer(sam: Promptable, encoded: Encoded, volume: Volume, point: tuple[int, int]) -> Mask:
    """(I, J) what the model answers to one click (i, j), without the runtime's corrections around it."""
    orientation = Orientation.of(volume)
    frame = Frame.of(orientation.volume(volume), sam.config, sam.image_size)
    x, y = frame.points_to_model(orientation.points(np.array([[*point, 0.0]]))[:, :2])[0]
    with torch.inference_mode():
        placed = torch.tensor([[[x, y]]]).to(sam.dense_pe)
        logits, scores = sam.decode(
            encoded.embedding,
            points=placed,
            point_labels=torch.ones(1, 1).to(placed),
            multimask=sam.multimask,
        )
        best = int(scores[0].argmax())
        refined = sam.refine(logits[:, best : best + 1], encoded.picture[None])[0].float()
        seen = (frame.logits_to_voxel(refined)[0].cpu().numpy() > 0).T
        return orientation.stored(seen[:, :, None])[:, :, 0]


def _clicked(segmenter: Segmenter, volume: Volume, truth: Mask, k: int, window: str) -> dict[str, float]:
    points: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    session, curve = Session(), list[float]()
    click = first_click(truth)
    while len(curve) < CLICKS:
        points[click.positive].append((*click.index, k))
        prompt = Prompt(foreground=np.array(points[True]), background=np.array(points[False]))
        mask = segmenter.segment_slice(volume, prompt, k, window=window, session=session).mask[:, :, k] != 0
        curve.append(dice(mask, truth))
        further = next_click(truth, mask)
        if further is None:
            curve += [1.0] * (CLICKS - len(curve))
        else:
            click = further
    kept = {f"{count} pt{'s' if count > 1 else ''}": curve[count - 1] for count in AFTER}
    return {**kept, "auc": float(np.mean(curve))}


def _boxed(segmenter: Segmenter, volume: Volume, truth: Mask, k: int, window: str) -> float:
    low, high = tight_box(truth)
    prompt = Prompt(box=np.array([[*low, k], [*high, k]]))
    return dice(segmenter.segment_slice(volume, prompt, k, window=window).mask[:, :, k], truth)


def _followed(segmenter: Segmenter, volume: Volume, truth: Mask, window: str) -> float:
    """Dice of the volume after one click in the middle one of the slices that hold the object."""
    held = np.flatnonzero(truth.any(axis=(0, 1)))
    k = held[len(held) // 2]
    prompt = Prompt(foreground=np.array([[*first_click(truth[:, :, k]).index, k]]))
    return dice(segmenter.segment_volume(volume, prompt, window=window).mask, truth)


def mean(rows: Rows, metric: str) -> float:
    """Mean over patients of the mean over each one's rows; NaN without a row."""
    patients = _by_patient({row.key: row.values[metric] for row in rows if metric in row.values})
    return float(np.mean([values.mean() for values in patients])) if patients else float("nan")


def by_label(rows: Rows) -> dict[str, tuple[Row, ...]]:
    """The rows of each label."""
    return {
        label: tuple(row for row in rows if row.label == label) for label in sorted({r.label for r in rows})
    }


@dataclass(frozen=True)
class Difference:
    """How much better one model is than another: the mean, and its bootstrap interval."""

    mean: float
    low: float
    high: float


def difference(
    one: Rows, other: Rows, metric: str, *, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Difference:
    """The paired difference `one - other` with a bootstrap over patients, and over each patient's rows.

    The interval holds `level` of the draws. Raises `ValueError` when the two have not measured the same.
    """
    first, second = (
        {row.key: row.values[metric] for row in rows if metric in row.values} for rows in (one, other)
    )
    if first.keys() != second.keys() or not first:
        raise ValueError("only models measured on the same objects can be compared")
    patients = _by_patient({key: first[key] - second[key] for key in first})
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(patients), size=(draws, len(patients)))
    means = np.empty(drawn.shape)
    for number, values in enumerate(patients):
        here = drawn == number
        again = rng.integers(len(values), size=(int(here.sum()), len(values)))
        means[here] = values[again].mean(axis=1)
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Difference(float(np.mean([values.mean() for values in patients])), float(low), float(high))


def _by_patient(values: Mapping[tuple[str, str, str, int], float]) -> list[NDArray[np.float64]]:
    patients: dict[str, list[float]] = {}
    for key in sorted(values):
        patients.setdefault(key[0], []).append(values[key])
    return [np.array(found) for found in patients.values()]


def as_json(rows: Rows) -> list[dict[str, Any]]:
    """Rows as a report keeps them."""
    return [
        {"patient": r.patient, "case": r.case, "label": r.label, "slice": None if r.k == WHOLE else r.k}
        | {"values": {name: round(value, 5) for name, value in r.values.items()}}
        for r in rows
    ]
