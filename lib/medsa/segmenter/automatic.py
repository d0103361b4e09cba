"""Automatic segmentation: prompts proposed by what the site's labelled studies look like, then checked.

Where a volume looks like a label's prototypes, the model is asked with a box on every slice, as an annotator
would draw one. Its answers have a vote beside the prototypes: it draws borders better than they do, they know
better what is meant. Slices are seen one by one, also by models with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsa.data.model_input import Frame
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.prompts.annotator import tight_box
from medsa.prompts.prompt import Prompt
from medsa.segmenter.classes import Classifier, classify_volume
from medsa.segmenter.memory import look_of
from medsa.segmenter.propagate import stop_if
from medsa.segmenter.prototypes import Cells, Prototypes, gather, likeness, places_of
from medsa.segmenter.request import Request
from medsa.segmenter.runtime import Segmenter

Mask = NDArray[np.bool_]
Likely = NDArray[np.float32]
Progress = Callable[[int, int], None]

LOOKED_AT = 64
"""Slices of a volume that are compared with the prototypes at most, evenly spread."""
HELD, EMPTY = 16, 6
"""Slices of a labelled study that are learnt from: with the label, and without it."""
PART = 0.3
"""A part of an object counts from this part of the largest one's mass on."""
SMALL = 0.1
"""An object of less than this part of the smallest labelled one's size is none."""
VOTE = 0.5
"""What the model's answer weighs beside the likeness (0..1)."""
AGREED = 0.3
"""Least agreement (Dice) with the prototypes of an answer that has a vote."""


@dataclass(frozen=True)
class Found:
    """What was found of a label: `mask` (I, J, K) uint8 0/1; `confidence` 0..1, 0 where nothing was found.

    `likely` (I, J, K) float32 is how much each voxel is like the label's prototypes, 0..1.
    """

    mask: NDArray[np.uint8]
    confidence: float
    likely: Likely

    def stored(self, orientation: Orientation) -> Found:
        """The same on the grid of the file."""
        return Found(orientation.stored(self.mask), self.confidence, orientation.stored(self.likely))


def learn(
    segmenter: Segmenter,
    volume: Volume,
    mask: Mask,
    *,
    window: str = "auto",
    cancelled: Callable[[], bool] | None = None,
) -> Prototypes:
    """The prototypes of an object from its `mask` (I, J, K) in a labelled study; none for an empty mask.

    Raises `CancelledError` soon after `cancelled()`.
    """
    volume, orientation = segmenter.seen(volume)
    mask = orientation.seen(mask)
    request = Request(segmenter, volume, Prompt(), window, None)
    held = mask.any(axis=(0, 1))
    chosen = sorted({*_spread(np.flatnonzero(held), HELD), *_spread(np.flatnonzero(~held), EMPTY)})

    def slices() -> Iterator[tuple[Cells, Mask]]:
        for k in chosen:
            stop_if(cancelled)
            yield _cells(request, k), request.frame.mask_to_model(mask[:, :, k], request.frame.size)

    return gather(slices(), int(mask.sum()) * _voxel(volume))


def find(
    segmenter: Segmenter,
    volume: Volume,
    prototypes: Mapping[str, Prototypes],
    *,
    window: str = "auto",
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Found]:
    """What is found of each label in a volume, by what it looks like in other studies.

    `progress(done, most)` counts slices. Raises `CancelledError` soon after `cancelled()`.
    """
    volume, orientation = segmenter.seen(volume)
    request = Request(segmenter, volume, Prompt(), window, None)
    looked = _spread(np.arange(volume.shape[2]), LOOKED_AT)
    maps: dict[str, list[NDArray[np.float32]]] = {name: [] for name in prototypes}
    for done, k in enumerate(looked, start=1):
        stop_if(cancelled)
        cells = _cells(request, k)
        for name, known in prototypes.items():
            maps[name].append(likeness(cells, known).numpy())
        if progress is not None:
            progress(done, len(looked))
    return {
        name: _object(
            segmenter.about(name),
            volume,
            _on_grid(volume, request.frame, looked, found),
            SMALL * float(prototypes[name].sizes.min()),
            window,
            cancelled,
        ).stored(orientation)
        for name, found in maps.items()
    }


def find_taught(
    segmenter: Segmenter,
    classifier: Classifier,
    volume: Volume,
    names: Collection[str],
    *,
    window: str = "auto",
    progress: Progress = lambda _done, _most: None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, Found]:
    """Those of `names` that a model without prompts was taught, as it sees them; `segmenter` lends its turns.

    `progress(done, most)` counts slices. Raises `CancelledError` soon after `cancelled()`.
    """
    answer = classify_volume(
        classifier,
        volume,
        window=window,
        progress=progress,
        cancelled=cancelled,
        turn=segmenter.encoding.turn,
    )
    found = {}
    for place, name in enumerate(classifier.labels, start=1):
        if name in names:
            mask, sure = (answer.mask == place).astype(np.uint8, order="F"), answer.sure[name]
            found[name] = Found(mask, sure, mask * np.float32(sure))
    return found


def _object(
    segmenter: Segmenter,
    volume: Volume,
    likely: Likely,
    least: float,
    window: str,
    cancelled: Callable[[], bool] | None,
) -> Found:
    """An object from its likeness (I, J, K): the model's answers to boxes, and the prototypes, decide.

    One of less than `least` mm3 is none.
    """
    votes = np.zeros(likely.shape, bool, order="F")
    for k, prompt in proposed(likely):
        stop_if(cancelled)
        answer = segmenter.segment_slice(volume, prompt, k, window=window).mask[:, :, k] != 0
        if agreement(answer, likely[:, :, k] > 0.5) >= AGREED:
            votes[:, :, k] |= answer
    mask = main_parts((likely + VOTE * votes) / (1 + VOTE) > 0.5, likely)
    if not mask.any() or mask.sum() * _voxel(volume) < least:
        return Found(np.zeros(volume.shape, np.uint8, order="F"), 0.0, likely)
    sure = float(likely[mask].mean()) * (1 + agreement(votes, likely > 0.5)) / 2
    return Found(mask.astype(np.uint8, order="F"), sure, likely)


def proposed(likely: Likely) -> Iterator[tuple[int, Prompt]]:
    """For every part of an object, on every slice that holds it: the slice and a tight box, by `likely`."""
    parts, count = ndimage.label(main_parts(likely > 0.5, likely), np.ones((3, 3, 3)))
    for number in range(1, count + 1):
        part = parts == number
        for k in np.flatnonzero(part.any(axis=(0, 1))).tolist():
            low, high = tight_box(part[:, :, k])
            if (high > low).all():
                yield k, Prompt(box=np.array([[*low, k], [*high, k]]))


def main_parts(mask: Mask, likely: Likely) -> Mask:
    """`mask` (I, J, K) without the parts that have much less `likely` mass than the largest."""
    parts, count = ndimage.label(mask, np.ones((3, 3, 3)))
    masses = ndimage.sum_labels(likely, parts, np.arange(1, count + 1))
    kept = np.flatnonzero(masses >= PART * masses.max(initial=0)) + 1
    return np.isin(parts, kept)


def agreement(one: Mask, other: Mask) -> float:
    """Dice of two masks; 0 when both are empty."""
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else 0.0


def _cells(request: Request, k: int) -> Cells:
    """The cells of slice k as they are compared."""
    look, frame = look_of(request.encoded(k)[1]), request.frame
    cells = look.shape[-1]
    shown = torch.zeros(cells, cells, dtype=torch.bool)
    shown[: -(-frame.rows * cells // frame.size), : -(-frame.columns * cells // frame.size)] = True
    return Cells(look, places_of(request.volume, frame, k, cells), shown)


def _voxel(volume: Volume) -> float:
    """Its size in mm3."""
    return float(volume.spacing.prod())


def _on_grid(volume: Volume, frame: Frame, looked: list[int], found: list[Likely]) -> Likely:
    """Likeness (I, J, K) from cells (h, w) of the slices `looked` at; between those it is interpolated."""
    seen = frame.logits_to_voxel(torch.from_numpy(np.stack(found))).numpy().transpose(2, 1, 0)
    if len(looked) == volume.shape[2]:
        return seen
    at = np.interp(np.arange(volume.shape[2]), looked, np.arange(len(looked)))
    below = np.floor(at).astype(int)
    above, part = np.minimum(below + 1, len(looked) - 1), (at - below).astype(np.float32)
    return (1 - part) * seen[:, :, below] + part * seen[:, :, above]


def _spread(values: NDArray[np.integer], most: int) -> list[int]:
    """At most so many of `values`, evenly spread, the first and the last among them."""
    chosen = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return [int(value) for value in values[chosen]]
