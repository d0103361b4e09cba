"""What drawn scenes are made of: outlines, soft edges, textures, lines and colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Outline:
    """A closed shape: `centre` (y, x) and `radius` in pixels, squeezed to `aspect` and turned by `angle`.

    `waves` are (amplitude, number, phase) of the bumps along its border.
    """

    centre: tuple[float, float]
    radius: float
    aspect: float = 1.0
    angle: float = 0.0
    waves: tuple[tuple[float, int, float], ...] = ()

    def depth(self, shape: tuple[int, int]) -> Plane:
        """How far inside its border each pixel is, in pixels; negative outside. Exact for a circle."""
        y, x = np.ogrid[: shape[0], : shape[1]]
        dy, dx = y - self.centre[0], x - self.centre[1]
        along = dx * np.cos(self.angle) + dy * np.sin(self.angle)
        across = (dy * np.cos(self.angle) - dx * np.sin(self.angle)) / self.aspect
        turn = np.arctan2(across, along)
        border = 1 + sum(size * np.cos(number * turn + phase) for size, number, phase in self.waves)
        return (self.radius * border - np.hypot(along, across)) * np.sqrt(self.aspect)


def outline(
    rng: np.random.Generator, centre: tuple[float, float], radius: float, rough: float = 0.12
) -> Outline:
    """A random one; `rough` is how much its border waves."""
    numbers = np.arange(2, 9)
    waves = tuple(
        (float(rng.normal(0, rough / number**0.7)), int(number), float(rng.uniform(0, 2 * np.pi)))
        for number in numbers
    )
    return Outline(centre, radius, float(rng.uniform(0.5, 1.0)), float(rng.uniform(0, np.pi)), waves)


def place(rng: np.random.Generator, shape: tuple[int, int], margin: float = 0.12) -> tuple[float, float]:
    """A random (y, x) that keeps off the borders by `margin` of the image."""
    y, x = (float(rng.uniform(margin, 1 - margin) * length) for length in shape)
    return y, x


def texture(rng: np.random.Generator, shape: tuple[int, int], grain: float, octaves: int = 4) -> Plane:
    """Cloudy noise of mean 0 and deviation 1; its coarsest spots are `grain` pixels wide."""
    total = np.zeros(shape)
    for octave in range(octaves):
        step = max(1.0, grain / 2**octave)
        coarse = rng.standard_normal([int(length / step) + 4 for length in shape])
        fine = ndimage.zoom(coarse, step, order=1 if step < 3 else 3)
        y, x = (int(rng.integers(0, fine.shape[axis] - shape[axis] + 1)) for axis in (0, 1))
        total += fine[y : y + shape[0], x : x + shape[1]] * 0.6**octave
    return (total - total.mean()) / max(float(total.std()), 1e-6)


def blend(picture: Plane, colour: Plane | float, depth: Plane, softness: float) -> Plane:
    """`picture` (H, W, C) with `colour` where `depth` (H, W) is above 0; the edge is `softness` wide."""
    share = 1 / (1 + np.exp(-np.clip(depth / max(softness, 0.1), -30, 30)))
    return picture + share[..., None] * (colour - picture)


def line(
    rng: np.random.Generator,
    shape: tuple[int, int],
    width: float,
    bend: float = 0.04,
    start: Plane | None = None,
) -> Plane:
    """(H, W) how far inside a winding line of `width` pixels each pixel is; negative outside."""
    position = np.array(place(rng, shape, 0.0)) if start is None else start.astype(float)
    heading, turn = rng.uniform(0, 2 * np.pi), 0.0
    away = np.ones(shape, bool)
    for _ in range(int(rng.uniform(0.5, 1.5) * max(shape))):
        y, x = (int(value) for value in position)
        if not (0 <= y < shape[0] and 0 <= x < shape[1]):
            break
        away[y, x] = False
        turn = 0.95 * turn + rng.normal(0, bend)
        heading += turn * 0.3
        position += np.array([np.sin(heading), np.cos(heading)])
    if away.all():
        return np.full(shape, -1e3)
    return width / 2 - ndimage.distance_transform_edt(away)


def shade(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> Plane:
    """(H, W) uneven light: a smooth slope and a vignette about 1."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, length) for length in shape), indexing="ij")
    slope = rng.normal(0, 1) * y + rng.normal(0, 1) * x
    return np.clip(1 + strength * (0.4 * slope - rng.uniform(0, 0.6) * (y * y + x * x)), 0.05, 2)


def finish(rng: np.random.Generator, picture: Plane, noise: float, blur: float) -> NDArray[np.uint8]:
    """A picture (H, W, C), 0..1, seen through a lens and a sensor: uint8, blurred, noisy."""
    seen = ndimage.gaussian_filter(picture, (blur, blur, 0)) if blur > 0 else picture
    seen = seen + noise * rng.standard_normal(picture.shape)
    return (seen.clip(0, 1) * 255).round().astype(np.uint8)
