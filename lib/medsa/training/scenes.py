"""Drawn scenes with their truth: what dermoscopes, endoscopes, ultrasound, fundus cameras and scanners show.

They stand in for data that may not be redistributed; only their variety matters, not their likeness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsa.training.drawing import (
    Mask,
    Outline,
    Plane,
    blend,
    finish,
    line,
    outline,
    place,
    shade,
    texture,
)


@dataclass(frozen=True)
class Scene:
    """`pixels` (H, W, 3) or (H, W) uint8, and the `objects` in it, each a mask (H, W)."""

    pixels: NDArray[np.uint8]
    objects: Mapping[str, Mask]


def draw_scene(rng: np.random.Generator, kind: str | None = None) -> Scene:
    """A scene of a kind of `KINDS`, by default a random one; objects that hardly show are left out."""
    kind = kind or str(rng.choice(list(KINDS)))
    shape = (int(rng.integers(190, 257)), int(rng.integers(190, 257)))
    scene = KINDS[kind](rng, shape)
    pixels = scene.pixels
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    return Scene(pixels, {name: mask for name, mask in scene.objects.items() if mask.sum() >= 25})


def shapes(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """Anything on anything: blobs of all sizes, lighter or darker, textured or flat, one over the other."""
    channels = int(rng.choice([1, 3]))
    picture = _surface(rng, shape, rng.uniform(0.1, 0.9, channels), rng.uniform(0, 0.15))
    objects: dict[str, Mask] = {}
    for number in range(int(rng.integers(1, 7))):
        radius = float(np.exp(rng.uniform(np.log(6), np.log(0.42 * min(shape)))))
        depth = outline(rng, place(rng, shape), radius, rng.uniform(0.02, 0.3)).depth(shape)
        change = rng.choice([-1, 1]) * rng.uniform(0.1, 0.5) * rng.uniform(0.4, 1, channels)
        colour = (picture[depth > 0].mean(axis=0) if (depth > 0).any() else 0.5) + change
        picture = blend(
            picture, _surface(rng, shape, colour, rng.uniform(0, 0.12)), depth, rng.uniform(0.4, 4)
        )
        objects = {name: mask & (depth <= 0) for name, mask in objects.items()}
        objects[f"shape {number}"] = depth > 0
    picture = picture * shade(rng, shape, rng.uniform(0, 0.5))[..., None]
    return Scene(finish(rng, picture, rng.uniform(0, 0.08), rng.uniform(0, 1.5)), _unbroken(objects))


def dermoscopy(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """A pigmented lesion on skin, often large, with hairs, a ruler's edge or a dark frame."""
    skin = np.array([0.83, 0.62, 0.52]) * rng.uniform(0.75, 1.15) + rng.normal(0, 0.04, 3)
    picture = _surface(rng, shape, skin, rng.uniform(0.01, 0.05))
    radius = rng.uniform(0.08, 0.46) * min(shape)
    lesion = outline(rng, place(rng, shape, 0.3), radius, rng.uniform(0.03, 0.22))
    depth = lesion.depth(shape) + texture(rng, shape, radius / 2, 3) * radius * rng.uniform(0, 0.12)
    brown = skin * rng.uniform(0.3, 0.8) * np.array([1, rng.uniform(0.7, 1), rng.uniform(0.6, 1.1)])
    inside = _surface(rng, shape, brown, rng.uniform(0.02, 0.1))
    if rng.random() < 0.5:  # a darker or paler part within
        core = outline(rng, lesion.centre, radius * rng.uniform(0.3, 0.7)).depth(shape)
        inside = blend(inside, brown * rng.uniform(0.5, 1.5), core, radius * 0.1)
    picture = blend(picture, inside, depth, rng.uniform(0.02, 0.2) * radius)
    for _ in range(int(rng.choice([0, 0, 3, 10, 25]))):
        picture = blend(picture, rng.uniform(0.05, 0.35), line(rng, shape, rng.uniform(1, 2.5), 0.01), 0.5)
    picture = picture * shade(rng, shape, rng.uniform(0, 0.5))[..., None]
    if rng.random() < 0.3:
        picture = blend(picture, 0.02, -_disc(shape, rng.uniform(0.5, 0.62)), 2)
    return Scene(
        finish(rng, picture, rng.uniform(0, 0.03), rng.uniform(0.3, 1)), {"lesion": _largest(depth > 0)}
    )


def endoscopy(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """A polyp of the mucosa's own colour: a bump with its light and shadow among folds and reflections."""
    mucosa = np.array([0.75, 0.42, 0.33]) * rng.uniform(0.7, 1.2) + rng.normal(0, 0.05, 3)
    picture = _surface(rng, shape, mucosa, rng.uniform(0.02, 0.07))
    lumen = Outline(place(rng, shape, 0.15), rng.uniform(0.1, 0.3) * min(shape), rng.uniform(0.6, 1))
    picture = blend(picture, mucosa * 0.12, lumen.depth(shape), 0.15 * min(shape))
    for _ in range(int(rng.integers(1, 6))):  # folds
        fold = line(rng, shape, rng.uniform(3, 14), 0.03)
        picture = blend(picture, np.clip(mucosa * rng.uniform(0.7, 1.35), 0, 1), fold, rng.uniform(2, 8))
    radius = rng.uniform(0.07, 0.45) * min(shape)
    polyp = outline(rng, place(rng, shape, 0.2), radius, rng.uniform(0.02, 0.1))
    depth = polyp.depth(shape)
    light = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[: shape[0], : shape[1]]
    facing = ((x - polyp.centre[1]) * np.cos(light) + (y - polyp.centre[0]) * np.sin(light)) / radius
    dome = np.sqrt(np.clip(depth / radius, 0, 1))
    colour = mucosa * rng.uniform(0.85, 1.25) + rng.normal(0, 0.05, 3)
    surface = _surface(rng, shape, colour, rng.uniform(0.01, 0.06))
    surface = surface * (0.75 + 0.35 * dome + rng.uniform(0, 0.2) * facing * dome)[..., None]
    shadow = Outline(
        (polyp.centre[0] - np.sin(light) * 0.12 * radius, polyp.centre[1] - np.cos(light) * 0.12 * radius),
        radius * 1.06, polyp.aspect, polyp.angle, polyp.waves,
    )  # fmt: skip
    picture = blend(picture, picture * rng.uniform(0.5, 0.95), shadow.depth(shape), radius * 0.12)
    picture = blend(picture, surface, depth, rng.uniform(0.5, 0.08 * radius + 0.6))
    for _ in range(int(rng.integers(0, 14))):  # reflections
        spot = outline(rng, place(rng, shape), rng.uniform(1, 6), 0.3).depth(shape)
        picture = blend(picture, rng.uniform(0.85, 1), spot, 0.7)
    picture = picture * shade(rng, shape, rng.uniform(0.2, 0.8))[..., None]
    if rng.random() < 0.6:
        picture = blend(picture, 0.0, -_disc(shape, rng.uniform(0.5, 0.68), rng.choice([2, 8])), 1)
    return Scene(finish(rng, picture, rng.uniform(0, 0.03), rng.uniform(0.3, 1.2)), {"polyp": depth > 0})


def ultrasound(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """A lesion darker than layered tissue, in speckle, with an echo or a shadow below it."""
    y = np.linspace(0, 1, shape[0])[:, None]
    layers = np.interp(
        y + 0.03 * texture(rng, shape, 60, 2), np.linspace(0, 1, 7), rng.uniform(0.15, 0.75, 7)
    )
    tissue = np.clip(layers + 0.07 * texture(rng, shape, rng.uniform(8, 40)), 0.03, 1)
    radius = rng.uniform(0.06, 0.4) * min(shape)
    lesion = outline(rng, place(rng, shape, 0.25), radius, rng.uniform(0.03, 0.2))
    depth = lesion.depth(shape) + texture(rng, shape, radius / 2, 3) * radius * rng.uniform(0, 0.1)
    below = (np.maximum.accumulate(depth > 0, axis=0) & (depth <= 0)).astype(float)
    tissue = tissue * (1 + below * rng.uniform(-0.6, 0.4))
    inside = tissue.mean() * rng.uniform(0.1, 0.6) if rng.random() < 0.85 else min(0.9, tissue.mean() * 2)
    inner = np.clip(inside * (1 + rng.uniform(0, 0.4) * texture(rng, shape, radius / 2)), 0.01, 1)
    tissue = blend(tissue[..., None], inner[..., None], depth, rng.uniform(0.5, 0.12 * radius + 0.6))[..., 0]
    grain = rng.uniform(0.5, 1.6)
    speckle = np.hypot(*(_smooth(rng, shape, grain) for _ in range(2))) / np.sqrt(np.pi / 2)
    seen = np.clip(tissue * (1 + rng.uniform(0.3, 0.9) * (speckle - 1)), 0, 1) ** rng.uniform(0.6, 1.2)
    seen = seen * np.clip(1 - rng.uniform(0, 0.8) * (y - 0.3), 0, 2)
    picture = np.repeat(seen[..., None], int(rng.choice([1, 3])), axis=2)
    return Scene(finish(rng, picture, 0.01, 0.3), {"lesion": _largest(depth > 0)})


def fundus(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """An optic disc with its cup within and vessels across, in the whole eye or close by."""
    size = min(shape)
    red = np.array([0.75, 0.35, 0.15]) * rng.uniform(0.6, 1.2) + rng.normal(0, 0.04, 3)
    picture = _surface(rng, shape, red, rng.uniform(0.01, 0.04)) * shade(rng, shape, 0.4)[..., None]
    close = rng.random() < 0.6
    radius = (rng.uniform(0.15, 0.36) if close else rng.uniform(0.05, 0.11)) * size
    centre = place(rng, shape, 0.35 if close else 0.25)
    disc = Outline(centre, radius, rng.uniform(0.85, 1), rng.uniform(0, np.pi), ((0.02, 3, 1.0),))
    deep = disc.depth(shape)
    pale = np.clip(red * rng.uniform(1.15, 1.5) + np.array([0.08, 0.14, 0.06]) * rng.uniform(0.5, 1.4), 0, 1)
    picture = blend(picture, _surface(rng, shape, pale, 0.02), deep, rng.uniform(0.03, 0.12) * radius)
    shift = rng.normal(0, 0.1 * radius, 2)
    cup = Outline(
        (centre[0] + shift[0], centre[1] + shift[1]), radius * rng.uniform(0.3, 0.75),
        rng.uniform(0.8, 1), rng.uniform(0, np.pi), ((0.04, 2, 0.5),),
    )  # fmt: skip
    hollow = np.minimum(cup.depth(shape), deep - 1)
    bright = np.clip(pale + rng.uniform(0.06, 0.3) * np.array([0.5, 1, 0.8]), 0, 1)
    picture = blend(picture, bright, hollow, rng.uniform(0.05, 0.2) * radius)
    for _ in range(int(rng.integers(4, 12))):
        vessel = line(rng, shape, rng.uniform(0.02, 0.1) * radius + 1, 0.03, np.array(centre))
        picture = blend(picture, red * np.array([0.6, 0.4, 0.5]), vessel, 0.8)
    if not close:
        picture = blend(picture, 0.0, -_disc(shape, rng.uniform(0.46, 0.55)), 1)
    objects = {"disc": deep > 0, "cup": hollow > 0, "rim": (deep > 0) & (hollow <= 0)}
    return Scene(finish(rng, picture, rng.uniform(0, 0.02), rng.uniform(0.4, 1.5)), objects)


def section(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """A cut through a body: organs within a rim within air, nested and touching, in grey."""
    centre = (shape[0] / 2, shape[1] / 2)
    body = outline(rng, centre, rng.uniform(0.36, 0.48) * min(shape), 0.04)
    depth = body.depth(shape)
    picture = np.full((*shape, 1), rng.uniform(0, 0.1))
    base = rng.uniform(0.2, 0.7)
    picture = blend(picture, _surface(rng, shape, np.array([base]), rng.uniform(0.01, 0.06)), depth, 1)
    objects: dict[str, Mask] = {"body": depth > 0}
    inner = depth - rng.uniform(0.03, 0.2) * body.radius
    picture = blend(picture, base + rng.choice([-1, 1]) * rng.uniform(0.08, 0.2), inner, 1)
    organs: dict[str, Mask] = {}
    for number in range(int(rng.integers(3, 10))):
        radius = float(np.exp(rng.uniform(np.log(5), np.log(0.4 * body.radius))))
        part = np.minimum(outline(rng, place(rng, shape, 0.2), radius, 0.15).depth(shape), inner - 2)
        value = np.array([np.clip(base + rng.choice([-1, 1]) * rng.uniform(0.06, 0.4), 0, 1)])
        picture = blend(picture, _surface(rng, shape, value, rng.uniform(0, 0.06)), part, rng.uniform(0.4, 2))
        organs = {name: mask & (part <= 0) for name, mask in organs.items()}
        organs[f"organ {number}"] = part > 0
    picture = picture * shade(rng, shape, rng.uniform(0, 0.3))[..., None]
    objects |= _unbroken(organs)
    return Scene(finish(rng, picture, rng.uniform(0.005, 0.08), rng.uniform(0, 1.2)), objects)


def threads(rng: np.random.Generator, shape: tuple[int, int]) -> Scene:
    """Long thin objects: vessels, nerves, instruments."""
    channels = int(rng.choice([1, 3]))
    picture = _surface(rng, shape, rng.uniform(0.2, 0.8, channels), rng.uniform(0.02, 0.1))
    objects: dict[str, Mask] = {}
    for number in range(int(rng.integers(1, 4))):
        depth = line(rng, shape, rng.uniform(4, 18), rng.uniform(0.005, 0.05))
        colour = picture.mean(axis=(0, 1)) + rng.choice([-1, 1]) * rng.uniform(0.15, 0.4, channels)
        picture = blend(picture, colour, depth, rng.uniform(0.4, 2))
        objects = {name: mask & (depth <= 0) for name, mask in objects.items()}
        objects[f"thread {number}"] = depth > 0
    return Scene(finish(rng, picture, rng.uniform(0, 0.05), rng.uniform(0, 1)), _unbroken(objects))


KINDS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Scene]] = {
    "shapes": shapes,
    "dermoscopy": dermoscopy,
    "endoscopy": endoscopy,
    "ultrasound": ultrasound,
    "fundus": fundus,
    "section": section,
    "threads": threads,
}


def _surface(rng: np.random.Generator, shape: tuple[int, int], colour: Plane, contrast: float) -> Plane:
    """(H, W, C): a colour with a grain of its own."""
    grain = texture(rng, shape, float(np.exp(rng.uniform(np.log(3), np.log(80)))))
    return np.asarray(colour) + contrast * grain[..., None]


def _disc(shape: tuple[int, int], part: float, power: float = 2) -> Plane:
    """(H, W) depth inside a disc (`power` 2) or a rounded square (more) of `part` of the image's height."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    away = np.abs(y - shape[0] / 2) ** power + np.abs(x - shape[1] / 2) ** power
    return part * max(shape) - away ** (1 / power)


def _smooth(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> Plane:
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), grain)
    return noise / noise.std()


def _unbroken(objects: Mapping[str, Mask]) -> dict[str, Mask]:
    """Objects of one piece: what others cut apart is left out but for its largest part."""
    return {name: _largest(mask) for name, mask in objects.items() if mask.any()}


def _largest(mask: Mask) -> Mask:
    parts, count = ndimage.label(mask)
    return mask if count <= 1 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()
