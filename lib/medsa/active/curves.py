"""Whether one strategy is better than another: areas under curves, intervals, paired tests after Holm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import trapezoid

Floats = NDArray[np.float64]
Runs = Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
"""strategy -> seed -> rounds, as `Campaign.run` gives them."""
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its Student interval; NaN bounds with a single seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """How much better `one` is than `other`, paired by seed; `p` of the t test, `corrected` after Holm."""

    one: str
    other: str
    difference: Interval
    p: float
    corrected: float


def curve(rounds: Sequence[Mapping[str, Any]], metric: str, over: str = "studies") -> tuple[Floats, Floats]:
    """What was spent, in "studies" or "clicks", and the metric, after each round; both (rounds,)."""
    spent = [len(line["picked"]) if over == "studies" else line["clicks"] for line in rounds]
    return np.cumsum(spent, dtype=float), np.array([line["figures"][metric] for line in rounds])


def areas(runs: Runs, metric: str, over: str = "studies") -> dict[str, Floats]:
    """strategy -> (seeds,): the mean height of each curve, where all runs have one."""
    curves = {
        name: [curve(rounds, metric, over) for rounds in seeds if rounds] for name, seeds in runs.items()
    }
    every = [spent for found in curves.values() for spent, _ in found]
    low, high = max(spent[0] for spent in every), min(spent[-1] for spent in every)
    return {
        name: np.array([_height(spent, values, low, high) for spent, values in found])
        for name, found in curves.items()
    }


def _height(spent: Floats, values: Floats, low: float, high: float) -> float:
    if high <= low:
        return float(np.interp(high, spent, values))
    at = np.union1d(spent[(spent > low) & (spent < high)], [low, high])
    return float(trapezoid(np.interp(at, spent, values), at) / (high - low))


def interval(values: Sequence[float] | Floats) -> Interval:
    """Of the mean of values, one a seed."""
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    if len(array) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half)


def compare(values: Mapping[str, Floats]) -> list[Comparison]:
    """Every pair of strategies, paired by seed; the smallest p first."""
    found = []
    for one, other in combinations(values, 2):
        gain = values[one] - values[other]
        found.append((one, other, interval(gain), _p(gain)))
    corrected = holm([p for *_, p in found])
    joined = [Comparison(*pair, c) for pair, c in zip(found, corrected, strict=True)]
    return sorted(joined, key=lambda one: (np.nan_to_num(one.p, nan=2), one.one, one.other))


def _p(gain: Floats) -> float:
    if len(gain) < 2:
        return float("nan")
    if np.ptp(gain) == 0:
        return 1.0 if gain[0] == 0 else 0.0
    return float(stats.ttest_1samp(gain, 0).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p values corrected after Holm (1979), in their order; NaN stays and does not count."""
    known = [n for n, value in enumerate(p) if np.isfinite(value)]
    corrected, worst = [float("nan")] * len(p), 0.0
    for place, n in enumerate(sorted(known, key=lambda n: p[n])):
        worst = max(worst, min(1.0, (len(known) - place) * p[n]))
        corrected[n] = worst
    return corrected
