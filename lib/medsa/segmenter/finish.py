"""What may be done to a mask before it is handed over: all of it only when asked for, clicks are kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsa.errors import BadInputError
from medsa.prompts.prompt import Points, Prompt

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Finish:
    """What to do to a mask: keep its `largest` part alone, `fill` the holes of its slices, and drop parts
    smaller than `smallest` cubic millimetres.

    Raises `BadInputError` for a `smallest` that is no size.
    """

    largest: bool = False
    fill: bool = False
    smallest: float = 0.0

    def __post_init__(self) -> None:
        if not (np.isfinite(self.smallest) and self.smallest >= 0):
            raise BadInputError("the smallest part must be given in cubic millimetres, 0 or more")

    def __bool__(self) -> bool:
        return self.largest or self.fill or self.smallest > 0


def finished(mask: Mask, prompt: Prompt, spacing: NDArray[np.float64], wanted: Finish) -> Mask:
    """`mask` (I, J, K) 0/1 after what is `wanted`; `spacing` (3,) mm. The mask given is not changed.

    Parts are connected through faces. A part with a click on it stays, whatever its size, and a hole with a
    click beside the object stays open.
    """
    held = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not wanted or not len(held[0]):
        return mask
    low = np.array([places[0] for places in held])
    room = tuple(slice(places[0], places[-1] + 1) for places in held)
    result, inside = mask.copy(order="F"), mask[room] != 0
    if wanted.fill:
        inside = _filled(inside, _within(prompt.background - low, inside.shape))
    if wanted.largest or wanted.smallest:
        inside = _parts(inside, _within(prompt.foreground - low, inside.shape), spacing, wanted)
    result[room] = inside
    return result


def _parts(
    inside: NDArray[np.bool_],
    clicks: tuple[NDArray[np.intp], ...],
    spacing: NDArray[np.float64],
    wanted: Finish,
) -> NDArray[np.bool_]:
    parts, _ = ndimage.label(inside)
    sizes = np.bincount(parts.ravel()) * spacing.prod()
    sizes[0] = 0
    kept = sizes >= (max(wanted.smallest, sizes.max()) if wanted.largest else wanted.smallest)
    kept[parts[clicks]] = True
    kept[0] = False
    return np.asarray(kept[parts])


def _filled(inside: NDArray[np.bool_], clicks: tuple[NDArray[np.intp], ...]) -> NDArray[np.bool_]:
    """Without the holes of each slice, but for those with a click in them."""
    result = inside.copy()
    for k in range(inside.shape[2]):
        holes, _ = ndimage.label(ndimage.binary_fill_holes(inside[:, :, k]) & ~inside[:, :, k])
        here = clicks[2] == k
        opened = holes[clicks[0][here], clicks[1][here]]
        result[:, :, k] |= (holes > 0) & ~np.isin(holes, opened[opened > 0])
    return result


def _within(points: Points, shape: tuple[int, ...]) -> tuple[NDArray[np.intp], ...]:
    """The voxels of the points (P, 3) that lie in a grid of `shape`, as indices along its axes."""
    voxels = np.rint(points).astype(np.intp)
    voxels = voxels[((voxels >= 0) & (voxels < shape)).all(axis=1)]
    return tuple(voxels.T)
