"""Where slices lie in the patient: their order along the normal, the affine of the stack (PS3.3 C.7.6.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsa.errors import UnreadableImageError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM's patient axes (left, posterior, superior) to NIfTI's (right, anterior, superior), and back."""

_UNIT = 1e-2
_PARALLEL = 1e-3
_SAME_PLANE_MM = 1e-3


def plane_affine(
    position: Sequence[float],
    orientation: Sequence[float],
    spacing: Sequence[float],
    step: NDArray[np.float64],
) -> NDArray[np.float64]:
    """RAS+ affine (4, 4) of a grid of slices.

    `position` (3,) LPS mm of the first voxel's centre, `orientation` (6,) row and column cosines, `spacing`
    (2,) DICOM PixelSpacing (between rows, between columns), `step` (3,) LPS mm from a slice to the next.
    """
    row, column = np.reshape(np.asarray(orientation, np.float64), (2, 3))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * spacing[1], column * spacing[0], step
    affine[:3, 3] = position
    return LPS_TO_RAS @ affine


def normal(orientation: Sequence[float]) -> NDArray[np.float64]:
    """Unit normal (3,) LPS of a plane of `orientation` (6,); `UnreadableImageError` if there is none."""
    row, column = np.reshape(np.asarray(orientation, np.float64), (2, 3))
    lengths = np.linalg.norm([row, column], axis=1)
    if not (np.abs(lengths - 1) < _UNIT).all() or abs(row @ column) > _UNIT:
        raise UnreadableImageError("ImageOrientationPatient does not hold two perpendicular unit vectors")
    return np.cross(row, column) / np.prod(lengths)


def stack(
    positions: Sequence[Sequence[float]], orientations: Sequence[Sequence[float]]
) -> tuple[list[int], NDArray[np.float64]]:
    """Order of two or more slices, ascending along the normal, and the step (3,) LPS mm between neighbours.

    `positions` (K, 3), `orientations` (K, 6). The step need not be parallel to the normal (gantry tilt).
    Raises `UnreadableImageError` for mixed orientations, several slices at one place and uneven distances.
    """
    directions = np.asarray(orientations, np.float64)
    turned = (np.abs(directions - directions[0]) > _PARALLEL).any(axis=1)
    if turned.any():
        raise UnreadableImageError(
            f"{int(turned.sum())} of {len(turned)} images lie in another orientation than the first: "
            "this is no stack of parallel slices; open each orientation by itself"
        )
    points = np.asarray(positions, np.float64)
    along = points @ normal(directions[0])
    order = np.argsort(along, kind="stable")
    along, points = along[order], points[order]
    gaps = np.diff(along)
    same = int((gaps < _SAME_PLANE_MM).sum())
    if same:
        raise UnreadableImageError(
            f"{len(along)} images share {len(along) - same} positions: a series over time, or "
            "several phases or echoes; open one phase by itself"
        )
    step = (points[-1] - points[0]) / (len(points) - 1)
    ideal = points[0] + np.arange(len(points))[:, None] * step
    distance, tolerance = float(gaps.mean()), max(0.02 * float(gaps.mean()), 0.01)
    if (np.abs(np.diff(points, axis=0) - step).max() > 2 * tolerance) or (
        np.abs(points - ideal).max() > distance / 4
    ):
        worst = int(np.argmax(np.abs(gaps - np.median(gaps))))
        raise UnreadableImageError(
            f"the slices are unevenly spaced ({gaps.min():.3g} to {gaps.max():.3g} mm, the oddest gap after "
            f"slice {worst + 1} of {len(along)}): slices are missing, or the series must be resampled first"
        )
    return [int(index) for index in order], step


def grid_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(I, J, K) of a 2D, 3D or trailing-ones shape."""
    kept = list(shape)
    while len(kept) > 3 and kept[-1] == 1:
        kept.pop()
    if len(kept) not in (2, 3):
        raise UnreadableImageError(
            f"the image has {len(kept)} dimensions ({' x '.join(map(str, shape))}); give a volume or a slice"
        )
    if min(kept) < 1:
        raise UnreadableImageError("the image has no voxels")
    i, j, k = (*kept, 1)[:3]
    return i, j, k
