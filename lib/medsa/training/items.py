"""What a training step asks for: one object on one slice (or slab), prepared once as the model takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsa.data.model_input import Frame, normalise, picture_of, slice_pixels
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.data.window import Window, choose_window
from medsa.sam import Backbone

Mask = NDArray[np.bool_]
T = TypeVar("T")

SMALLEST = 6
"""Cells of the logits' grid below which an object is too small to be asked for."""
TRAIL = 5
"""Slices of a trail at most."""
BEYOND = 2
"""Slices beyond an object's end that are looked at, to learn that it has ended."""
REHEARSED = "drawn object"
"""What an object is called that is only trained on so that less is forgotten."""


@dataclass(frozen=True)
class Grid:
    """What a model takes: `size` S of its input, `cells` of its logits, `depth` of its slabs."""

    backbone: Backbone
    size: int
    cells: int
    depth: int = 1

    def frame(self, volume: Volume) -> Frame:
        """How the slices of `volume` lie in the model's square."""
        return Frame.of(volume, self.backbone, self.size)


@dataclass(frozen=True, eq=False)
class Picture:
    """A slab of D slices: `pixels` uint8, each (1 or 3, rows, columns), windowed and resized, not padded."""

    pixels: tuple[NDArray[np.uint8], ...]
    frame: Frame

    @cached_property
    def digest(self) -> str:
        """Content hash: the key of the slab's embedding."""
        digest = hashlib.blake2b(repr(self.frame).encode(), digest_size=16)
        for part in self.pixels:
            digest.update(f"{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def image(self, backbone: Backbone) -> Tensor:
        """(D, 3, S, S) float32 as `backbone` takes it: but for the rounding what the runtime would feed."""
        return as_images([torch.from_numpy(part) for part in self.pixels], backbone, self.frame)

    def colours(self, at: int) -> Tensor:
        """(1 or 3, 256, 256) float16: a slice as the runtime's corrections look at it."""
        if at not in self._colours:
            values = torch.from_numpy(self.pixels[at]).float()
            low, high = values.aminmax()
            flat = (values - low) / (high - low).clamp(min=1e-8)
            picture = picture_of(self.frame.pad(flat.expand(3, -1, -1))[None], len(values) == 3)
            self._colours[at] = picture
        return self._colours[at]

    @cached_property
    def _colours(self) -> dict[int, Tensor]:
        return {}


@dataclass(frozen=True, eq=False)
class Item:
    """An object to be asked for on slice `at` of a picture.

    `packed` is its mask on the model's square at the logits' resolution, `side` cells a side, in bits; it may
    be empty. `around` is then the mask of the neighbouring slice, whose box is the prompt, as the runtime
    asks when it follows an object to its end. `trail` are the next slices in one direction, the object's
    last ones and some beyond it, as far as they are at hand: to learn to follow it. `study` is a hash.
    """

    picture: Picture
    packed: NDArray[np.uint8]
    side: int
    label: str
    study: str
    around: NDArray[np.uint8] | None = None
    at: int = 0
    trail: tuple[Item, ...] = ()

    @classmethod
    def of(
        cls, picture: Picture, mask: Mask, label: str, study: str, around: Mask | None = None, at: int = 0
    ) -> Item:
        """An item of a mask (side, side)."""
        packed = None if around is None else np.packbits(around)
        return cls(picture, np.packbits(mask), len(mask), label, study, packed, at)

    @property
    def mask(self) -> Mask:
        """(side, side), the object."""
        return self._unpacked(self.packed)

    @property
    def prompted(self) -> Mask:
        """(side, side), what prompts are placed on: the object, or its neighbour where it is absent."""
        return self._unpacked(self.packed if self.around is None else self.around)

    def coarser(self) -> Item:
        """The same on a grid of half as many cells a side."""
        around = None if self.around is None else _halved(self.prompted)
        item = Item.of(self.picture, _halved(self.mask), self.label, self.study, around, self.at)
        return replace(item, trail=tuple(part.coarser() for part in self.trail))

    @property
    def colours(self) -> Tensor:
        """(1 or 3, 256, 256) float16: its slice as the runtime's corrections look at it."""
        return self.picture.colours(self.at)

    @property
    def extent(self) -> tuple[int, int]:
        """(rows, columns) of cells that hold the slice; the others are padding."""
        return self.picture.frame.extent(self.side)

    def _unpacked(self, bits: NDArray[np.uint8]) -> Mask:
        return np.unpackbits(bits, count=self.side**2).reshape(self.side, self.side).astype(bool)


def as_images(slices: Sequence[Tensor], backbone: Backbone, frame: Frame) -> Tensor:
    """Slices (1 or 3, rows, columns), 0..255, as the image encoder takes them: (D, 3, S, S)."""
    return torch.stack([normalise(part, backbone, frame) for part in slices])


class Pictures:
    """The pictures of one volume, each slice prepared once however many slabs hold it."""

    def __init__(self, volume: Volume, grid: Grid, window: Window | None = None) -> None:
        self.volume, self.grid, self.frame = volume, grid, grid.frame(volume)
        self.window = window or choose_window(volume)
        self.depth = min(grid.depth, volume.shape[2])
        self._slices: dict[int, NDArray[np.uint8]] = {}
        self._pictures: dict[range, Picture] = {}

    def around(self, k: int) -> Picture:
        """The slab about slice k."""
        places = self.slices(k)
        if places not in self._pictures:
            self._pictures[places] = Picture(tuple(self._slice(at) for at in places), self.frame)
        return self._pictures[places]

    def slices(self, k: int) -> range:
        """The places of the slab about slice k: as where it is asked about, all of them in the volume."""
        first = min(max(0, k - self.depth // 2), self.volume.shape[2] - self.depth)
        return range(first, first + self.depth)

    def _slice(self, k: int) -> NDArray[np.uint8]:
        if k not in self._slices:
            pixels = slice_pixels(self.volume, k, self.window, self.frame)
            self._slices[k] = pixels.round().clamp(0, 255).to(torch.uint8).numpy()
        return self._slices[k]


def items_of(
    volume: Volume,
    mask: NDArray[np.uint8],
    names: Mapping[int, str],
    grid: Grid,
    study: str,
    *,
    most: int | None = None,
    empty: bool = False,
    run: int = 1,
    window: Window | None = None,
) -> list[Item]:
    """The items of one study: each label of `names` on each slice that holds it, `most` of them a label.

    `mask` (I, J, K) label values. Slices are taken at even steps, from a place that depends on the
    study, and in slabs all of those in them; with a `run` above 1 so many neighbours at a time, which may lie
    beyond an object's ends and then are only the trail of others. `empty` adds items without an object: the
    slices beside an object's first and last one. Objects below `SMALLEST` are left out.
    """
    orientation = Orientation.of(volume)
    mask, pictures = orientation.seen(mask), Pictures(orientation.volume(volume), grid, window)
    found = []
    for value, name in sorted(names.items()):
        truth = mask == value
        held = np.flatnonzero(truth.any(axis=(0, 1)))
        if grid.depth > 1:
            about = _spread(held, None if most is None else -(-most // grid.depth), study)
            slabs = [
                [(pictures.around(k), at, place) for at, place in enumerate(places)]
                for places, k in {pictures.slices(k): k for k in about}.items()
            ]
        elif run > 1:
            slabs = [
                [(pictures.around(k), 0, k) for k in together]
                for together in runs_of(held, volume.shape[2], most, run, study)
            ]
        else:
            slabs = [[(pictures.around(k), 0, k)] for k in _spread(held, most, study)]
        for slab in slabs:
            found += _of_slab(slab, truth, pictures, name, study, trails=run > 1)
        if len(held) and empty:
            found += _absent(pictures, truth, held, name, study)
    return found


def _of_slab(
    slab: Sequence[tuple[Picture, int, int]],
    truth: Mask,
    pictures: Pictures,
    name: str,
    study: str,
    *,
    trails: bool,
) -> list[Item]:
    """The items of neighbouring slices (picture, place in it, k), each with the longer of its two trails."""
    cells = pictures.grid.cells
    masks = {k: pictures.frame.mask_to_model(truth[:, :, k], cells) for _, _, k in slab}
    items = [Item.of(picture, masks[k], name, study, at=at) for picture, at, k in slab]
    found = []
    for n, item in enumerate(items):
        if item.mask.sum() >= SMALLEST:
            onwards, back = items[n + 1 :][:TRAIL], items[:n][::-1][:TRAIL]
            longer = onwards if len(onwards) >= len(back) else back
            found.append(replace(item, trail=tuple(longer)) if trails else item)
    return found


def _absent(pictures: Pictures, truth: Mask, held: NDArray[np.intp], name: str, study: str) -> list[Item]:
    found = []
    for k, neighbour in ((int(held[0]) - 1, int(held[0])), (int(held[-1]) + 1, int(held[-1]))):
        if 0 <= k < truth.shape[2]:
            around = pictures.frame.mask_to_model(truth[:, :, neighbour], pictures.grid.cells)
            if around.sum() >= SMALLEST:
                nothing = np.zeros_like(around)
                at = k - pictures.slices(k).start
                found.append(Item.of(pictures.around(k), nothing, name, study, around, at))
    return found


def with_few_empty(items: Sequence[Item], share: float) -> list[Item]:
    """The items, with so many of those without an object as are `share` of the others' pictures.

    They are evenly chosen. Of pictures, as a step takes pictures: a slab's objects are asked for together.
    """
    held = [item for item in items if item.around is None]
    absent = [item for item in items if item.around is not None]
    return held + evenly(absent, round(share * len({id(item.picture) for item in held})))


def evenly(values: Sequence[T], most: int) -> list[T]:
    """At most so many of `values`, at even steps from the first to the last."""
    if len(values) <= most:
        return list(values)
    return [values[int(n)] for n in np.linspace(0, len(values) - 1, most).round()]


def _halved(mask: Mask) -> Mask:
    """(c, c) -> (c / 2, c / 2): cells that are half covered, or touched at all where that leaves none."""
    half = len(mask) // 2
    cover = mask.reshape(half, 2, half, 2).mean(axis=(1, 3))
    return cover >= 0.5 if (cover >= 0.5).any() else cover > 0


def _spread(held: NDArray[np.intp], most: int | None, study: str) -> list[int]:
    """At most so many slices at even steps; where they begin differs from study to study."""
    if most is None or len(held) <= most:
        return [int(k) for k in held]
    begin = int.from_bytes(hashlib.blake2b(study.encode(), digest_size=4).digest()) / 2**32
    steps = ((np.arange(most) + begin) * len(held) / most).astype(int)
    return [int(k) for k in held[steps]]


def runs_of(held: NDArray[np.intp], slices: int, most: int | None, run: int, study: str) -> list[list[int]]:
    """About `most` slices in runs of `run` neighbours, of those that hold the object and some beyond it."""
    if not len(held):
        return []
    first, last = max(0, int(held[0]) - BEYOND), min(slices - 1, int(held[-1]) + BEYOND)
    span = np.arange(first, last + 1)
    if most is None or len(span) <= most:
        return [span.tolist()]
    starts = _spread(span[: len(span) - run + 1], max(1, most // run), study)
    chosen = np.unique([k for start in starts for k in range(start, start + run)])
    return [part.tolist() for part in np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)]


def labels_of(items: Iterable[Item]) -> tuple[str, ...]:
    """The labels that occur, sorted; what is only rehearsed is none."""
    return tuple(sorted({item.label for item in items} - {REHEARSED}))


def targets(items: Sequence[Item], like: Tensor) -> tuple[Tensor, Tensor]:
    """Masks (N, c, c) float and where they are not padding (N, c, c) bool."""
    truth = torch.from_numpy(np.stack([item.mask for item in items]))
    valid = torch.zeros_like(truth)
    for n, item in enumerate(items):
        rows, columns = item.extent
        valid[n, :rows, :columns] = True
    return truth.to(like), valid.to(like.device)
