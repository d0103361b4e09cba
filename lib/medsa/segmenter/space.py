"""Corrections in space: what a click changes on its slice it changes beside it too, as far as it reaches.

As on a slice (`corrections.py`), a click that the mask contradicts tells its depth: the distance to the
mask's border, here in millimetres through the volume. What lies within about that distance and has the
click's colour changes sides, softly, in the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsa.segmenter.corrections import ALONE, COLOUR, CONFIDENT, MARGIN, REACH, SPARE

Grid = NDArray[np.float32]

FAR = 2.5
"""Standard deviations of a correction beyond which it changes nothing."""


@dataclass(frozen=True)
class Spot:
    """A click: `k` its slice, `row` and `column` its cell, `positive` on the object; `at` its voxel."""

    k: int
    row: int
    column: int
    positive: bool
    at: tuple[float, ...] = ()


def spread(
    logits: Mapping[int, Grid],
    colours: Callable[[int], Grid],
    spot: Spot,
    others: Sequence[Spot],
    scale: tuple[float, float],
    *,
    depth: int,
    fixed: Collection[int] = (),
) -> dict[int, Grid]:
    """The slices that a click changes, and what they become; none where it agrees with the mask.

    `logits` (h, w) by slice, of those that hold the object, that of the click among them; `colours(k)` (C, h,
    w), 0..1; `others` clicks of the other kind, whose places are left alone; `scale` millimetres of a cell
    and of a slice; the volume has `depth` slices, of which those in `fixed` do not change.
    """
    now = float(logits[spot.k][spot.row, spot.column])
    if (now > 0) == spot.positive:
        return {}
    cell, thickness = scale
    side = len(logits[spot.k])
    rows, columns = np.ogrid[:side, :side]
    flat = cell**2 * ((rows - spot.row) ** 2 + (columns - spot.column) ** 2)
    nearest = np.inf
    for k in sorted(logits, key=lambda k: abs(k - spot.k)):
        if thickness * abs(k - spot.k) >= nearest:
            break
        wanted = (logits[k] > 0) == spot.positive
        if wanted.any():
            nearest = min(nearest, float(np.sqrt(flat[wanted].min() + (thickness * (k - spot.k)) ** 2)))
    distance = max(nearest if np.isfinite(nearest) else ALONE * side * cell, 2 * cell)
    sigma = REACH * distance
    window = tuple(
        slice(max(0, int(at - FAR * sigma / cell)), min(side, int(at + FAR * sigma / cell) + 2))
        for at in (spot.row, spot.column)
    )
    like = colours(spot.k)[:, spot.row, spot.column][:, None, None]
    change = min(abs(now), CONFIDENT) + MARGIN
    changed = {}
    reach = int(FAR * sigma / thickness)
    for k in range(max(0, spot.k - reach), min(depth, spot.k + reach + 1)):
        if k in fixed or (k not in logits and not spot.positive):
            continue
        away = flat[window] + (thickness * (k - spot.k)) ** 2
        unlike = np.square(colours(k)[(slice(None), *window)] - like).mean(axis=0)
        weight = np.exp(-away / (2 * sigma**2) - unlike / (2 * COLOUR**2)).astype(np.float32)
        for other in others:
            near = cell**2 * ((rows - other.row) ** 2 + (columns - other.column) ** 2)[window]
            weight[near + (thickness * (k - other.k)) ** 2 < (SPARE * SPARE) * away] = 0
        before = logits.get(k, np.full((side, side), -CONFIDENT, np.float32)).clip(-CONFIDENT, CONFIDENT)
        after = before.copy()
        after[window] += np.float32(change if spot.positive else -change) * weight
        if ((after > 0) != (before > 0)).any():
            changed[k] = after
    return changed
