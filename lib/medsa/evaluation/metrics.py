"""How alike two masks are: overlap, and distance of their surfaces in millimetres, as MONAI measures it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance
from numpy.typing import NDArray

from medsa.evaluation.overlap import dice

METRICS = ("dice", "iou", "hd95", "nsd")


def compare(
    mask: NDArray, truth: NDArray, spacing: Sequence[float], tolerance: float = 2.0
) -> dict[str, float]:
    """The `METRICS` of two masks of one shape (2D or 3D), non-zero meaning inside; `spacing` in mm.

    hd95: the larger of the two 95th percentiles of the distance from one surface to the other, in mm. nsd:
    the part of both surfaces that lies within `tolerance` mm of the other. Two empty masks are equal (1, 1,
    0, 1); where one alone is empty, hd95 is the image's diagonal, so that means stay finite.
    """
    if mask.shape != truth.shape or mask.ndim != len(spacing):
        raise ValueError(f"masks of {mask.shape} and {truth.shape} at {len(spacing)} spacings do not compare")
    inside, wanted = mask != 0, truth != 0
    overlap = dice(inside, wanted)
    found = {"dice": overlap, "iou": overlap / (2 - overlap)}
    if not inside.any() and not wanted.any():
        return {**found, "hd95": 0.0, "nsd": 1.0}
    if not inside.any() or not wanted.any():
        diagonal = float(np.linalg.norm(np.array(mask.shape) * spacing))
        return {**found, "hd95": diagonal, "nsd": 0.0}
    one, other = (torch.from_numpy(_cut(values, inside | wanted)) for values in (inside, wanted))
    step = list(map(float, spacing))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, of its own options
        _, distances, _ = get_edge_surface_distance(one, other, spacing=step, symmetric=True)
    away = [distance.double().numpy() for distance in distances]
    near = sum(int((distance <= tolerance).sum()) for distance in away)
    return {
        **found,
        "hd95": float(max(np.percentile(distance, 95) for distance in away)),
        "nsd": near / sum(map(len, away)),
    }


def _cut(values: NDArray[np.bool_], held: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`values` where `held` has something, and an empty voxel around it."""
    room = []
    for axis in range(held.ndim):
        others = tuple(other for other in range(held.ndim) if other != axis)
        places = np.flatnonzero(held.any(axis=others))
        room.append(slice(places[0], places[-1] + 1))
    return np.pad(values[tuple(room)], 1)
