"""Box proposals: how a backbone that was trained with boxes only understands a bare click."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsa.data.model_input import Frame

SIDES = (12.0, 18.0, 27.0, 40.0, 60.0, 90.0, 135.0, 200.0)


def boxes_around(point: tuple[float, float], frame: Frame) -> NDArray[np.float64]:
    """(N, 4) boxes of several sizes around a click, xyxy in model pixels, clipped to the image."""
    return squares_around(point, SIDES, frame)


def squares_around(point: tuple[float, float], sides: Sequence[float], frame: Frame) -> NDArray[np.float64]:
    """(N, 4) squares around a click, `sides` in 256ths of the input, boxes as those of `boxes_around`."""
    centre = np.asarray(point)
    half = np.asarray(sides)[:, None] / 2 * frame.size / 256
    return clip_boxes(np.concatenate([centre - half, centre + half], axis=1), frame)


def clip_boxes(boxes: NDArray[np.float64], frame: Frame) -> NDArray[np.float64]:
    """Boxes (N, 4) cut at the borders of the slice in the model's square."""
    return boxes.clip(0, np.array([frame.columns, frame.rows] * 2) - 1.0)
