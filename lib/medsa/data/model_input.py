"""The one place where a slice and its prompts become what a Segment Anything Model eats, and masks come back.

A slice of `(I, J)` voxels is laid out as an image of J rows and I columns, its longest side resized to the
model's `size` and the rest padded at the right and at the bottom (or both sides resized: `stretch`). Model
pixels are `(x, y)` with the centre of a pixel = integer, as segment-anything's prompt encoder expects them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsa.data.volume import Volume
from medsa.data.window import Window, apply_window
from medsa.sam.backbone import Backbone

Floats = NDArray[np.float64]

NOWHERE = -20.0
"""Logit of what lies outside the picture."""
PICTURE = 256
"""Side of the picture of a slice that is kept beside its embedding."""


@dataclass(frozen=True)
class Frame:
    """How a slice, or a part of one, of `width` x `height` voxels (I, J) lies in the square of `size` pixels.

    A part begins at the voxel (`left`, `top`) of its slice. Voxels are always the whole slice's.
    """

    width: int
    height: int
    size: int
    stretch: bool = False
    left: int = 0
    top: int = 0

    @classmethod
    def of(cls, volume: Volume, backbone: Backbone, image_size: int) -> Frame:
        """The frame of a volume's slices for a backbone whose input has `image_size` pixels a side."""
        width, height, _ = volume.shape
        return cls(width, height, image_size, backbone.resize == "stretch")

    @property
    def inside(self) -> tuple[slice, slice]:
        """The columns and rows of the slice that lie in the square: an index into (I, J)."""
        return slice(self.left, self.left + self.width), slice(self.top, self.top + self.height)

    @property
    def corner(self) -> Floats:
        """The first voxel (i, j) that lies in the square, (2,)."""
        return np.array([self.left, self.top], dtype=np.float64)

    @property
    def scale(self) -> Floats:
        """Model pixels a voxel along (x, y), (2,)."""
        return np.array([self.columns / self.width, self.rows / self.height])

    @property
    def columns(self) -> int:
        """Columns of the square that hold the slice; the others are padding."""
        return self._resized(self.width)

    @property
    def rows(self) -> int:
        """Rows of the square that hold the slice; the others are padding."""
        return self._resized(self.height)

    def _resized(self, length: int) -> int:
        if self.stretch:
            return self.size
        return max(1, int(length * self.size / max(self.width, self.height) + 0.5))

    def extent(self, cells: int) -> tuple[int, int]:
        """(rows, columns) of `cells` a side of the square that hold the slice; the others are padding."""
        cell = self.size / cells
        return max(1, round(self.rows / cell)), max(1, round(self.columns / cell))

    def unpadded(self, logits: Tensor) -> Tensor:
        """Logits (..., h, w) of the whole square that say `NOWHERE` in the padding."""
        rows, columns = self.extent(logits.shape[-1])
        kept = logits.clone()
        kept[..., rows:, :] = kept[..., columns:] = NOWHERE
        return kept

    def points_to_model(self, points: Floats) -> Floats:
        """(..., 2) voxel (i, j) -> (..., 2) model pixel (x, y)."""
        return (points - self.corner + 0.5) * self.scale - 0.5

    def points_to_voxel(self, points: Floats) -> Floats:
        """(..., 2) model pixel (x, y) -> (..., 2) voxel (i, j)."""
        return (points + 0.5) / self.scale - 0.5 + self.corner

    def boxes_to_model(self, boxes: Floats) -> Floats:
        """(..., 4) voxel (i0, j0, i1, j1), both corners inclusive -> first and last model pixel inside."""
        first, last = boxes[..., :2] - self.corner, boxes[..., 2:] - self.corner
        return np.concatenate([first * self.scale, (last + 1) * self.scale - 1], axis=-1)

    def boxes_to_voxel(self, boxes: Floats) -> Floats:
        """The inverse of `boxes_to_model`."""
        low, high = boxes[..., :2] / self.scale, (boxes[..., 2:] + 1) / self.scale - 1
        return np.concatenate([low + self.corner, high + self.corner], axis=-1)

    def image_to_model(self, image: Tensor) -> Tensor:
        """(C, J, I) -> (C, rows, columns), antialiased, not yet padded."""
        return resize(image[None], (self.rows, self.columns))[0]

    def pad(self, image: Tensor, value: float = 0.0) -> Tensor:
        """(..., rows, columns) -> (..., size, size): `value` at the right and at the bottom."""
        return F.pad(image, (0, self.size - self.columns, 0, self.size - self.rows), value=value)

    def logits_to_voxel(self, logits: Tensor) -> Tensor:
        """(N, h, w) logits of the whole square -> (N, J, I) logits of the slice, or of its part."""
        full = logits[:, None]
        if full.shape[-1] != self.size:
            full = F.interpolate(full, size=(self.size, self.size), mode="bilinear", align_corners=False)
        return resize(full[..., : self.rows, : self.columns], (self.height, self.width))[:, 0]

    def mask_to_model(self, mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
        """(I, J) mask -> (size, size) mask of the whole square, as a model's low-resolution masks lie."""
        image = torch.from_numpy(np.ascontiguousarray(mask.T)).float()[None]
        square = self.pad(self.image_to_model(image))[None]
        return (resize(square, (size, size))[0, 0] > 0.5).numpy()


def slice_input(volume: Volume, k: int, window: Window, backbone: Backbone, frame: Frame) -> Tensor:
    """Slice k as a backbone's image encoder takes it: (1, 3, S, S) float32, windowed, resized, normalised."""
    return normalise(slice_pixels(volume, k, window, frame), backbone, frame)[None]


def slice_pixels(volume: Volume, k: int, window: Window, frame: Frame) -> Tensor:
    """Slice k windowed to 0..255 and resized: (1 or 3, rows, columns) float32."""
    grey = apply_window(volume.voxels[(*frame.inside, k)], window).swapaxes(0, 1)
    image = torch.from_numpy(np.ascontiguousarray(grey))
    return frame.image_to_model(image.permute(2, 0, 1) if volume.is_rgb else image[None])


def normalise(pixels: Tensor, backbone: Backbone, frame: Frame) -> Tensor:
    """`slice_pixels` (1 or 3, rows, columns) as the image encoder takes them: (3, S, S) float32, padded."""
    image = pixels.float().expand(3, -1, -1)
    if backbone.pixel_mean is not None and backbone.pixel_std is not None:
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (backbone.pixel_mean, backbone.pixel_std)
        )
        image = (image - mean) / std
    else:
        low, high = image.aminmax()
        image = (image - low) / (high - low).clamp(min=1e-8)
    return frame.pad(image)


def picture_of(image: Tensor, colour: bool) -> Tensor:
    """The colours (3, or without `colour` 1, 256, 256) of a `slice_input`, 0..1, float16: to be looked at."""
    low, high = image.aminmax()
    small = F.adaptive_avg_pool2d(image[0] if colour else image[0, :1], PICTURE)
    return ((small - low) / (high - low).clamp(min=1e-8)).half()


def resize(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, C, *shape): bilinear; antialiased where it shrinks."""
    if images.shape[-2:] == shape:
        return images
    shrinks = shape[0] < images.shape[-2] or shape[1] < images.shape[-1]
    return F.interpolate(images, size=shape, mode="bilinear", align_corners=False, antialias=shrinks)
