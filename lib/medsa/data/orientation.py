"""Which way round a volume is looked at: always the same, however its file stores rows, columns and slices.

A picture and its mirror image are different pictures to a model. So slices are seen as radiology shows them
(the patient's left at the right, back or feet at the bottom; seen from the side, the face at the left), and
slices in one order (towards the head, the back or the left). What a file calls a slice stays one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medsa.data.volume import Volume
from medsa.prompts.prompt import Points, Prompt

TOWARDS = np.array([-1.0, -1.0, 1.0])
"""The direction of each axis of the patient (RAS+) in which indices grow: left, back, head."""


@dataclass(frozen=True)
class Orientation:
    """How a stored grid of `shape` (I, J, K) becomes the one that is looked at, and back.

    `swapped` says whether i and j change places; then the axes in `reversed` are counted from their end.
    """

    shape: tuple[int, int, int]
    swapped: bool
    reversed: tuple[bool, bool, bool]

    @classmethod
    def of(cls, volume: Volume) -> Orientation:
        """The orientation of `volume` by its affine; of an oblique one that of the nearest axes."""
        axes, signs = io_orientation(volume.affine).T
        if not np.isfinite(axes).all():
            return cls(volume.shape, False, (False, False, False))
        wanted = TOWARDS[axes.astype(int)]
        wanted[:2][axes[:2] == 2] = -1.0  # heads are up
        swapped = bool(axes[0] > axes[1])
        turned = signs != wanted
        i, j, k = (bool(turned[n]) for n in ((1, 0, 2) if swapped else (0, 1, 2)))
        return cls(volume.shape, swapped, (i, j, k))

    @property
    def as_stored(self) -> bool:
        """True when nothing is to be turned."""
        return not self.swapped and not any(self.reversed)

    def seen(self, stored: NDArray) -> NDArray:
        """A view of an array (I, J, K, ...) on the stored grid as it is looked at."""
        turned = stored.swapaxes(0, 1) if self.swapped else stored
        return turned[self._steps]

    def stored(self, seen: NDArray) -> NDArray:
        """The inverse of `seen`, in Fortran order."""
        turned = seen[self._steps]
        return np.asfortranarray(turned.swapaxes(0, 1) if self.swapped else turned)

    def volume(self, volume: Volume) -> Volume:
        """`volume` as it is looked at, with the same voxels; without headers."""
        if self.as_stored:
            return volume
        to_stored = np.eye(4)
        sizes = self._sizes
        for axis, turned in enumerate(self.reversed):
            if turned:
                to_stored[axis, axis], to_stored[axis, 3] = -1.0, sizes[axis] - 1.0
        if self.swapped:
            to_stored = to_stored[[1, 0, 2, 3]]
        return replace(volume, voxels=self.seen(volume.voxels), affine=volume.affine @ to_stored, headers=())

    def points(self, points: Points) -> Points:
        """Voxels (N, 3) of the stored grid as they are counted on the one that is looked at."""
        turned = points[:, [1, 0, 2]] if self.swapped else points
        return np.where(self.reversed, np.array(self._sizes) - 1 - turned, turned)

    def prompt(self, prompt: Prompt) -> Prompt:
        """A prompt of the stored grid on the one that is looked at."""
        box = None if prompt.box is None else self.points(prompt.box)
        return Prompt(self.points(prompt.foreground), self.points(prompt.background), box)

    def slice_of(self, k: int) -> int:
        """Slice k of either grid on the other one."""
        return self.shape[2] - 1 - k if self.reversed[2] else k

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """Of the grid that is looked at."""
        i, j, k = self.shape
        return (j, i, k) if self.swapped else (i, j, k)

    @property
    def _steps(self) -> tuple[slice, slice, slice]:
        i, j, k = (slice(None, None, -1 if turned else 1) for turned in self.reversed)
        return i, j, k
