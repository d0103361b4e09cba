"""Prototypes: what a label looks like, and where it lies, in the studies that a site has labelled.

The cells of a labelled study are gathered in a hundred kinds, those of the label apart from the others. A
cell of another study looks for its like among the kinds of all labelled studies, by the model's own
embedding, by colour and by place, and takes over their labels in proportion: memory (`segmenter/memory.py`)
across studies instead of slices. It is how prototypes segment from few examples (Wang et al., "PANet",
ICCV 2019), with several of them a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional as F

from medsa.data.model_input import Frame
from medsa.data.volume import Volume

INSIDE, BESIDE, FAR = 24, 40, 40
"""Kinds of cells a study: of the label, of what is around it, of everything else."""
MOST = 6000
"""Cells of each sort that are gathered at most."""
RING = 8
"""Cells around a label that are beside it."""
SHARPNESS = 20.0
"""What a squared difference of looks costs, in logits."""
SPREAD = 0.05
"""Least standard deviation of a place, as a part of what the volume shows."""
SEED = 0
_NAMES = ("looks", "places", "shares", "weights", "sizes")
_KINDS = ("looks", "places", "shares", "weights")


@dataclass(frozen=True)
class Cells:
    """The cells of a slice: `look` (C, h, w), `place` (3, h, w); `shown` (h, w) those that are no padding."""

    look: Tensor
    place: Tensor
    shown: Tensor


@dataclass(frozen=True)
class Prototypes:
    """N kinds of cells: `looks` (N, C), `places` (N, 3), `shares` (N,) of the label 0..1.

    `weights` (N,) are the numbers of cells that each stands for, as they occur in a study. `sizes` (S,) mm3
    are the label's in each of the S studies, `spread` (3,) is the standard deviation of places: how far apart
    its centres lie in them.
    """

    looks: Tensor
    places: Tensor
    shares: Tensor
    weights: Tensor
    sizes: Tensor
    spread: Tensor = field(default_factory=lambda: torch.full((3,), SPREAD))

    def __len__(self) -> int:
        return len(self.shares)

    @classmethod
    def none(cls) -> Prototypes:
        """Those of a study without the label."""
        return cls(torch.empty(0, 0), torch.empty(0, 3), *(torch.empty(0) for _ in range(3)))

    @classmethod
    def joined(cls, several: Sequence[Prototypes]) -> Prototypes:
        """Those of several studies as one."""
        centres = torch.stack([one.centre for one in several])
        spread = (centres.var(dim=0, correction=0) + SPREAD**2).sqrt()
        joined = {name: torch.cat([getattr(one, name) for one in several]) for name in _NAMES}
        return cls(**joined, spread=spread)

    @property
    def centre(self) -> Tensor:
        """(3,): where the label lies on average."""
        parts = (self.shares * self.weights)[:, None]
        return (parts * self.places).sum(dim=0) / parts.sum()

    def to_bytes(self) -> bytes:
        """As a safetensors file, looks in half precision."""
        tensors = {name: getattr(self, name).contiguous() for name in _NAMES}
        return save({**tensors, "looks": tensors["looks"].half()})

    @classmethod
    def from_bytes(cls, content: bytes) -> Prototypes:
        """What `to_bytes` wrote."""
        tensors = load(content)
        return cls(*(tensors[name].float() for name in _NAMES))


def places_of(volume: Volume, frame: Frame, k: int, cells: int) -> Tensor:
    """(3, cells, cells): where the cells of slice k lie in the patient, -0.5..0.5 of what the volume shows.

    To the right, to the front, to the head, whichever way the volume's slices lie.
    """
    centres = (np.arange(cells) + 0.5) * frame.size / cells - 0.5
    x, y = np.meshgrid(centres, centres)
    ij = frame.points_to_voxel(np.stack([x, y], axis=-1))
    index = np.concatenate([ij, np.full((cells, cells, 1), float(k))], axis=-1)
    shape = np.array(volume.shape)
    extent = np.abs(volume.affine[:3, :3]) @ shape
    place = ((index - (shape - 1) / 2) @ volume.affine[:3, :3].T) / extent
    return torch.from_numpy(np.ascontiguousarray(place.transpose(2, 0, 1))).float()


def gather(slices: Iterable[tuple[Cells, NDArray[np.bool_]]], size: float) -> Prototypes:
    """The kinds of cells of a labelled study; none where the label, of `size` mm3, holds no cell.

    `slices` are those that hold the label, and some that do not: cells, and the label's mask (s, s) on the
    whole square of the model.
    """
    sorts: dict[str, list[tuple[Tensor, Tensor]]] = {"inside": [], "beside": [], "far": []}
    for cells, mask in slices:
        share = F.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), cells.look.shape[-1])[0]
        near = F.max_pool2d(share[None], 2 * RING + 1, 1, RING)[0] > 0
        inside = share > 0.5
        for name, chosen in (
            ("inside", inside),
            ("beside", near & ~inside & cells.shown),
            ("far", ~near & cells.shown),
        ):
            sorts[name].append((cells.look[:, chosen].T, cells.place[:, chosen].T))
    if not sum(len(look) for look, _ in sorts["inside"]):
        return Prototypes.none()
    kinds = [
        _kinds(torch.cat([look for look, _ in found]), torch.cat([place for _, place in found]), most, share)
        for found, most, share in (
            (sorts["inside"], INSIDE, 1.0),
            (sorts["beside"], BESIDE, 0.0),
            (sorts["far"], FAR, 0.0),
        )
    ]
    joined = {name: torch.cat([kind[name] for kind in kinds]) for name in _KINDS}
    return Prototypes(**joined, sizes=torch.tensor([size]))


def likeness(cells: Cells, prototypes: Prototypes) -> Tensor:
    """(h, w), 0..1: how much of each cell is the label's, by what its like among the prototypes is."""
    looks, places = cells.look.flatten(1).T, cells.place.flatten(1).T
    unlike = SHARPNESS * torch.cdist(looks, prototypes.looks).square()
    spread = prototypes.spread
    away = torch.cdist(places / spread, prototypes.places / spread).square() / 2
    likely = prototypes.weights.log() - unlike - away
    shares = likely.softmax(dim=1) @ prototypes.shares
    return shares.reshape(cells.shown.shape) * cells.shown


def _kinds(looks: Tensor, places: Tensor, most: int, share: float) -> dict[str, Tensor]:
    """Up to `most` kinds of cells with looks (N, C) and places (N, 3), by both."""
    count = len(looks)
    if count > MOST:
        chosen = torch.from_numpy(np.random.default_rng(SEED).choice(count, MOST, replace=False))
        looks, places = looks[chosen], places[chosen]
    scale = np.sqrt(1 / (2 * SPREAD**2 * SHARPNESS))
    points = torch.cat([looks, scale * places], dim=1).numpy()
    most = min(most, len(points))
    if not most:
        return dict(zip(_KINDS, (looks, places, torch.empty(0), torch.empty(0)), strict=True))
    centres, which = kmeans2(points, most, minit="++", seed=SEED)
    number = torch.from_numpy(np.bincount(which, minlength=most)).float()
    full = number > 0
    found = torch.from_numpy(centres).float()[full]
    width = looks.shape[1]
    values = (
        found[:, :width],
        found[:, width:] / scale,
        torch.full((len(found),), share),
        number[full] * count / len(looks),
    )
    return dict(zip(_KINDS, values, strict=True))
