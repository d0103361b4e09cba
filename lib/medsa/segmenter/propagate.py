"""Follow-through: from the slices a user prompted outwards through the volume, until the object ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsa.errors import CancelledError

Answer = TypeVar("Answer")

CONTRAST = 25.0
"""Least difference (of 0..255) between an object and what is around it by which its end can be told."""


@dataclass(frozen=True)
class Tones:
    """Mean values (C,) of an object's pixels on a slice, and of a ring around it."""

    inside: NDArray[np.float64]
    outside: NDArray[np.float64]


def tones_of(mask: NDArray[np.bool_], pixels: NDArray[np.float32]) -> Tones | None:
    """The tones of a mask (h, w) on pixels (C, h, w), alike scaled on all slices; None without both sides."""
    ring = ndimage.binary_dilation(mask, iterations=max(2, len(mask) // 32)) & ~mask
    if not mask.any() or not ring.any():
        return None
    inside, outside = (pixels[:, part].mean(axis=1, dtype=np.float64) for part in (mask, ring))
    return Tones(inside, outside)


def same_object(here: Tones | None, beside: Tones | None) -> bool:
    """False when a mask looks more like what is around its neighbour than like the neighbour itself."""
    if here is None or beside is None:
        return True
    contrast = np.linalg.norm(beside.inside - beside.outside)
    to_object, to_ring = (np.linalg.norm(here.inside - tone) for tone in (beside.inside, beside.outside))
    return bool(contrast < CONTRAST or to_object <= to_ring)


def follow_through(
    anchors: Mapping[int, Answer],
    bounds: tuple[int, int],
    step: Callable[[int, Answer], Answer | None],
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[int, Answer]:
    """The answers of all slices the object reaches, by slice.

    `anchors` are the answers of the prompted slices, `bounds` the first and last slice to enter. `step(k,
    neighbour)` answers slice k from the answer of the slice beside it, None where the object has ended. From
    every anchor one front goes up and one down, in turns, so that two anchors meet halfway and where one side
    ends the other goes on. `progress(done, most)` is told after every slice. Raises `CancelledError` as soon
    as `cancelled()`.
    """
    low, high = bounds
    found = dict(anchors)
    fronts = [(k, way) for k in sorted(anchors) for way in (-1, 1)]
    while fronts:
        alive = []
        for k, way in fronts:
            beside = k + way
            if not low <= beside <= high or beside in found:
                continue
            stop_if(cancelled)
            answer = step(beside, found[k])
            if answer is None:
                continue
            found[beside] = answer
            alive.append((beside, way))
            if progress is not None:
                progress(len(found), high - low + 1)
        fronts = alive
    return dict(sorted(found.items()))


def stop_if(cancelled: Callable[[], bool] | None) -> None:
    """Raise `CancelledError` when `cancelled()`."""
    if cancelled is not None and cancelled():
        raise CancelledError("this request was overtaken by a newer one")
