"""Augmentations by MONAI's transforms: MA-SAM's list (METHODS.md, section 7), by configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import functional as F

from medsa.training.items import Item, Picture

Share = Field(0.0, ge=0, le=1)


class Augmentation(BaseModel):
    """How often each change is made (`*_share`), and how large it is at most; the defaults change nothing.

    `rotation` in degrees, `scale`, `brightness`, `contrast` as parts, `gamma` a factor either way, `noise`
    the standard deviation of white noise where the picture is 0..1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip_share: float = Share
    turn_share: float = Share
    rotation: float = Field(20.0, ge=0, le=180)
    scale: float = Field(0.1, ge=0, lt=1)
    intensity_share: float = Share
    brightness: float = Field(0.1, ge=0)
    contrast: float = Field(0.1, ge=0)
    gamma: float = Field(1.5, ge=1)
    noise_share: float = Share
    noise: float = Field(0.03, ge=0)

    @property
    def any(self) -> bool:
        """Whether anything is ever changed."""
        return max(self.flip_share, self.turn_share, self.intensity_share, self.noise_share) > 0


class Augmenter:
    """Changes pictures and their masks together, the same way under the same seed."""

    def __init__(self, settings: Augmentation) -> None:
        both, angle = ("image", "mask"), math.radians(settings.rotation)
        moves = [
            *(RandFlipd(both, prob=settings.flip_share, spatial_axis=axis) for axis in (0, 1)),
            RandAffined(
                both,
                prob=settings.turn_share,
                rotate_range=angle,
                scale_range=[settings.scale] * 2,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
        ]
        self.intensities = Compose(
            [
                RandScaleIntensityd("image", factors=settings.contrast, prob=settings.intensity_share),
                RandShiftIntensityd("image", offsets=settings.brightness, prob=settings.intensity_share),
                RandAdjustContrastd(
                    "image",
                    gamma=(1 / settings.gamma, max(settings.gamma, 1 / settings.gamma + 1e-6)),
                    prob=settings.intensity_share,
                    retain_stats=False,
                ),
                RandGaussianNoised("image", std=settings.noise, prob=settings.noise_share),
            ]
        )
        self.all = Compose([*moves, *self.intensities.transforms])

    def __call__(self, items: Sequence[Item], rng: np.random.Generator) -> list[Item]:
        """Items of one picture, with picture and masks changed alike; only in its intensities where one of
        them is without an object."""
        transform = self.intensities if any(item.around is not None for item in items) else self.all
        seed = int(rng.integers(2**31))
        first, *others = items
        changed = self._changed(first, transform, seed)
        rest = (self._changed(item, transform, seed) for item in others)
        return [changed, *(replace(item, picture=changed.picture) for item in rest)]

    def _changed(self, item: Item, transform: Compose, seed: int) -> Item:
        picture, frame = item.picture, item.picture.frame
        cell = frame.size // item.side
        mask = item.mask.repeat(cell, axis=0).repeat(cell, axis=1)[None, : frame.rows, : frame.columns]
        values = torch.from_numpy(np.concatenate(picture.pixels)) / 255.0
        transform.set_random_state(seed)
        changed = transform({"image": values, "mask": torch.from_numpy(mask.astype(np.float32))})
        pixels = (torch.as_tensor(changed["image"]).clamp(0, 1) * 255).round().to(torch.uint8)
        square = frame.pad(torch.as_tensor(changed["mask"]).float())[None]
        small = (F.avg_pool2d(square, cell)[0, 0] > 0.5).numpy()
        slices = pixels.numpy().reshape(len(picture.pixels), -1, frame.rows, frame.columns)
        around = None if item.around is None else item.prompted
        return Item.of(Picture(tuple(slices), frame), small, item.label, item.study, around, item.at)
