"""Tones: an object has ended where its mask looks like what was around it on the slice before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

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
