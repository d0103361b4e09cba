"""Clicks that the mask contradicts change it around them: far where nothing speaks against it, always there.

A click in a wrong region tells its depth: the distance to the mask's border. What lies within about that
distance and has the click's colour changes sides, softly, in the logits. Measured on a dozen public sets this
does more than any further question to a backbone that was trained with boxes only, and it takes no model.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsa.data.model_input import Frame
from medsa.segmenter.session import Point, SlicePrompt

Grid = NDArray[np.float32]

CONFIDENT = 6.0
"""Logits are cut to plus and minus this before a correction, so that no cell is beyond it."""
MARGIN = 4.0
"""The logit at a corrected click."""
REACH = 1.5
"""Standard deviation of a correction, in distances of the click from the mask's border."""
COLOUR = 0.2
"""Difference of colour (0..1) at which a correction has lost a standard deviation."""
SPARE = 0.3
"""A correction leaves alone what is nearer to a click of the other kind by this factor."""
ALONE = 20 / 256
"""Distance taken when there is no mask to measure to, as a part of the model's square."""


def correct(logits: Tensor, picture: Tensor, prompt: SlicePrompt, frame: Frame) -> Tensor:
    """Logits (h, w) of the whole square that agree with every click of `prompt`; the same if they do already.

    `picture` (C, s, s) are the slice's colours 0..1. A correction leaves the place of every click of the
    other kind alone; of two contradicting clicks in one place the background one wins.
    """
    cells = logits.shape[-1]
    now = logits.float().cpu().numpy().copy()
    colours = F.adaptive_avg_pool2d(picture.float(), cells).cpu().numpy()
    for points, positive in ((prompt.foreground, True), (prompt.background, False)):
        others = np.array([cell_of(point, cells, frame) for point in points_of(prompt, not positive)])
        for point in points:
            row, column = cell_of(point, cells, frame)
            if (now[row, column] > 0) != positive:
                now = _corrected(
                    now, colours, (row, column), positive, others, cells / frame.size * frame.scale.max()
                )
    return torch.from_numpy(now)


def points_of(prompt: SlicePrompt, positive: bool) -> tuple[Point, ...]:
    """The prompt's clicks on the object, or those beside it."""
    return prompt.foreground if positive else prompt.background


def cell_of(point: Point, cells: int, frame: Frame) -> tuple[int, int]:
    """(row, column) of the cell, `cells` a side of the square, in which a point (model pixels) lies."""
    x, y = (int(min(max((value + 0.5) * cells / frame.size, 0), cells - 1)) for value in point)
    return y, x


def _corrected(
    logits: Grid,
    colours: Grid,
    click: tuple[int, int],
    positive: bool,
    others: NDArray[np.int_],
    voxel: float,
) -> Grid:
    """`logits` changed around a `click` (row, column); `voxel` is the extent of a voxel in cells."""
    side = len(logits)
    y, x = np.ogrid[:side, :side]
    away = (y - click[0]) ** 2 + (x - click[1]) ** 2
    wanted = (logits > 0) == positive
    distance = np.sqrt(away[wanted].min()) if wanted.any() else ALONE * side
    distance = max(float(distance), 2.0, voxel)

    unlike = np.square(colours - colours[:, click[0], click[1]][:, None, None]).mean(axis=0)
    weight = np.exp(-away / (2 * (REACH * distance) ** 2) - unlike / (2 * COLOUR**2)).astype(np.float32)
    for row, column in others:
        weight[(y - row) ** 2 + (x - column) ** 2 < (SPARE * SPARE) * away] = 0
    weight[click] = 1
    cut = logits.clip(-CONFIDENT, CONFIDENT)
    change = abs(float(cut[click])) + MARGIN
    return cut + np.float32(change if positive else -change) * weight
