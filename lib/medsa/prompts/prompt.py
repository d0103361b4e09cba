"""What an annotator says about one object: points and a box, in voxel coordinates of the original volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsa.errors import BadInputError

Points = NDArray[np.float64]


def _points(values: ArrayLike, name: str) -> Points:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise BadInputError(f"{name} must be a list of points [i, j, k]") from None
    if array.size == 0:
        array = np.empty((0, 3))
    if array.ndim != 2 or array.shape[1] != 3:
        raise BadInputError(f"{name} must be a list of points [i, j, k], not of shape {array.shape}")
    if not np.isfinite(array).all():
        raise BadInputError(f"{name} holds a coordinate that is not a finite number")
    array.setflags(write=False)
    return array


@dataclass(frozen=True, eq=False)
class Prompt:
    """Points and at most one box, voxel `(i, j, k)` = (column, row, slice), centre of voxel = integer.

    `foreground` (P, 3), `background` (N, 3): points on and off the object, in the order they were set.
    `box` (2, 3) or None: lowest and highest corner, both inclusive; a box on one slice has equal `k`, one
    that was drawn in another plane equal `i` or `j`. Raises `BadInputError` for NaN, wrong shapes and boxes
    without area. Whether a prompt lies inside a given volume is asked by `check_inside(shape)`.
    """

    foreground: Points = field(default_factory=lambda: np.empty((0, 3)))
    background: Points = field(default_factory=lambda: np.empty((0, 3)))
    box: Points | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "foreground", _points(self.foreground, "foreground"))
        object.__setattr__(self, "background", _points(self.background, "background"))
        if self.box is not None:
            corners = _points(self.box, "box")
            if corners.shape != (2, 3):
                raise BadInputError("box must hold two corners [i, j, k]")
            box = np.stack([corners.min(axis=0), corners.max(axis=0)])
            if (box[1] - box[0] <= 0).sum() > 1:
                raise BadInputError("the box has no area: its corners must differ along two axes")
            box.setflags(write=False)
            object.__setattr__(self, "box", box)

    @property
    def across(self) -> bool:
        """True when the box was drawn in a plane that crosses the slices: it is flat along i or j."""
        return self.box is not None and bool((self.box[0, :2] == self.box[1, :2]).any())

    @property
    def empty(self) -> bool:
        """True when there is nothing that says where the object is."""
        return len(self.foreground) == 0 and self.box is None

    def check_inside(self, shape: Sequence[int]) -> None:
        """Raise `BadInputError` when a point lies outside a grid of `shape` (I, J, K), or the box misses it.

        Boxes may stick out; they are clipped where they are used.
        """
        size = np.asarray(shape[:3])
        grid = f"the image of {size[0]} x {size[1]} x {size[2]} voxels"
        for name, points in (("foreground", self.foreground), ("background", self.background)):
            rounded = np.rint(points)
            outside = ((rounded < 0) | (rounded >= size)).any(axis=1)
            if outside.any():
                i, j, k = points[np.flatnonzero(outside)[0]]
                raise BadInputError(f"the {name} point ({i:g}, {j:g}, {k:g}) lies outside {grid}")
        if self.box is not None and ((self.box[1] < 0) | (self.box[0] > size - 1)).any():
            raise BadInputError(f"the box lies outside {grid}")
