"""Memory: what a mask looks like on known slices, and where on the next slice the same is to be seen.

Every cell of a new slice looks for its like among the cells near by on the remembered slices, by the model's
own embedding and by colour, and takes over their labels in proportion. No weight is trained for it: it is how
frozen features carry masks through videos (Jabri et al., "Space-time correspondence as a contrastive random
walk", NeurIPS 2020, section 3), and it follows what no box around a neighbour's mask can follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from medsa.segmenter.session import State
from medsa.segmenter.slices import Encoded

COLOUR = 3.0
"""Weight of the colours (0..1) beside embeddings of length 1."""
BLURS = (1, 3, 5)
"""Sides in cells of the squares over which colours are averaged."""
SHARPNESS = 10.0
"""What a squared difference of looks costs, in logits."""
WANDER = 3.0
"""Standard deviation, in cells, of how far a part may have moved from one slice to the next."""
REACH = 8
"""Cells around the remembered mask that are looked at."""
MOST = 40 * 40
"""Cells that are compared with one another; a larger region is looked at in cells of twice the side."""
SURE = 1e-3


@dataclass(frozen=True)
class Known:
    """A slice that is remembered: its `look` (C, h, w), the object's `share` (h, w) of each cell 0..1."""

    look: Tensor
    share: Tensor


def look_of(encoded: Encoded) -> Tensor:
    """(C, h, w): the directions of a slice's embedding and its colours at several blurs, cell by cell."""
    embedding = encoded.embedding[0].float().cpu()  # masks and pictures are there
    direction = F.normalize(embedding - embedding.mean((1, 2), keepdim=True), dim=0)
    colours = F.adaptive_avg_pool2d(encoded.picture.float(), embedding.shape[-1])
    blurred = [F.avg_pool2d(colours, side, 1, side // 2, count_include_pad=False) for side in BLURS]
    return torch.cat([direction, *(COLOUR * colour for colour in blurred)])


def share_of(state: State, cells: int) -> Tensor:
    """(h, w) with h = w = `cells`: how much of each cell the object of `state` holds, 0..1."""
    return F.adaptive_avg_pool2d(torch.sigmoid(state.logits.float())[None], cells)[0]


def carry_over(look: Tensor, memory: Sequence[Known], side: int) -> Tensor:
    """Logits (side, side) of the object of `memory` on a slice that looks like `look` (C, h, w)."""
    cells = look.shape[-1]
    seen = torch.stack([known.share for known in memory]).amax(dim=0) > 0.05
    if not seen.any():
        return torch.full((side, side), float(torch.logit(torch.tensor(SURE))))
    rows, columns = (_span(seen.any(dim=axis), REACH, cells) for axis in (1, 0))
    step = 1 if (rows.stop - rows.start) * (columns.stop - columns.start) <= MOST else 2
    here = _flat(look[:, rows, columns], step)
    height, width = -(-(rows.stop - rows.start) // step), -(-(columns.stop - columns.start) // step)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([y, x]).reshape(2, -1).float() * step
    far = (place[:, :, None] - place[:, None]).square().sum(dim=0) / (2 * WANDER**2)
    likeness = [
        -SHARPNESS * _squared_distances(here, _flat(known.look[:, rows, columns], step)) - far
        for known in memory
    ]
    labels = torch.cat([_flat(known.share[None, rows, columns], step)[0] for known in memory])
    found = (torch.cat(likeness, dim=1).softmax(dim=1) @ labels).reshape(1, 1, height, width)
    share = torch.zeros(1, 1, cells, cells)
    fine = F.interpolate(found, size=(rows.stop - rows.start, columns.stop - columns.start), mode="bilinear")
    share[..., rows, columns] = fine
    wide = F.interpolate(share, size=(side, side), mode="bilinear")[0, 0]
    return torch.logit(wide.clamp(SURE, 1 - SURE))


def sureness(logits: Tensor) -> float:
    """Mean probability inside the mask of `logits`, 0.5..1; 0 for an empty one. Near 0.5 nothing is seen."""
    inside = logits[logits > 0]
    return float(torch.sigmoid(inside).mean()) if len(inside) else 0.0


def _span(held: Tensor, reach: int, size: int) -> slice:
    inside = held.nonzero()[:, 0]
    return slice(max(0, int(inside[0]) - reach), min(size, int(inside[-1]) + 1 + reach))


def _flat(values: Tensor, step: int) -> Tensor:
    """(C, h, w) -> (C, N): cells of `step` times the side."""
    if step > 1:
        values = F.avg_pool2d(values[None], step, ceil_mode=True, count_include_pad=False)[0]
    return values.flatten(1)


def _squared_distances(one: Tensor, other: Tensor) -> Tensor:
    """(N, M) squared distances of the columns of (C, N) and (C, M)."""
    squares = one.square().sum(dim=0)[:, None] + other.square().sum(dim=0)
    return torch.addmm(squares, one.T, other, alpha=-2).clamp(min=0)
