"""Overlap of two masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dice(mask: NDArray, truth: NDArray) -> float:
    """2 |A and B| / (|A| + |B|) of two masks of one shape, non-zero meaning inside; 1 when both are empty."""
    if mask.shape != truth.shape:
        raise ValueError(f"masks of shapes {mask.shape} and {truth.shape} cannot be compared")
    inside, wanted = mask != 0, truth != 0
    total = int(np.count_nonzero(inside)) + int(np.count_nonzero(wanted))
    return 2 * int(np.count_nonzero(inside & wanted)) / total if total else 1.0
