"""A picture of one slice with its mask, truth and prompts, for the command line's `--overlay`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from medsa.data.volume import Volume
from medsa.data.window import Window, apply_window
from medsa.prompts.prompt import Prompt

Colour = tuple[int, int, int]
MASK: Colour = (255, 176, 0)
TRUTH: Colour = (64, 220, 255)
POSITIVE: Colour = (70, 230, 90)
NEGATIVE: Colour = (255, 70, 70)
BOX: Colour = (255, 255, 255)
PANEL: Colour = (24, 24, 28)
TINT = 0.35
SHORTEST, LONGEST = 512, 1600  # pixels the picture's longer side is scaled to


def draw_overlay(
    volume: Volume,
    k: int,
    window: Window,
    mask: NDArray,
    prompt: Prompt,
    truth: NDArray | None = None,
    notes: Sequence[str] = (),
) -> Image.Image:
    """Slice k of `volume` in `window`, with `mask` (I, J) tinted and outlined, `truth` (I, J) outlined.

    Prompts of slice k are drawn with it: a disc with + or -, the box as a rectangle. Below stand a legend and
    `notes`, one a line. The slice is turned so that the patient's left is on the right and front or head up.
    """
    view = View(volume)
    grey = apply_window(volume.voxels[:, :, k], window).astype(np.uint8)
    picture = np.asarray(view.picture(grey).convert("RGB"), dtype=np.float32)
    inside = view.mask(mask)
    picture[inside] += TINT * (np.array(MASK, np.float32) - picture[inside])
    if truth is not None:
        picture[_outline(view.mask(truth))] = TRUTH
    picture[_outline(inside)] = MASK
    image = Image.fromarray(picture.astype(np.uint8))
    _draw_prompts(ImageDraw.Draw(image), view, prompt, k)
    return _with_legend(image, truth is not None, prompt, notes)


class View:
    """How a slice of `volume` is shown: flipped and scaled so that pixels are square on the screen."""

    def __init__(self, volume: Volume) -> None:
        self.flips = tuple(_points_away(volume.affine[:3, axis], axis) for axis in (0, 1))
        self.size = np.array(volume.shape[:2], dtype=float)
        extent = self.size * volume.spacing[:2]
        longest = float(np.clip(self.size.max() * 2, SHORTEST, LONGEST))
        self.pixels = np.maximum(np.rint(extent * longest / extent.max()), 1).astype(int)

    def picture(self, values: NDArray) -> Image.Image:
        """(I, J) or (I, J, 3) uint8 as a scaled picture."""
        return self._image(values).resize(tuple(self.pixels), Image.Resampling.BICUBIC)

    def mask(self, values: NDArray) -> NDArray[np.bool_]:
        """(I, J) mask as (height, width) of the picture."""
        image = self._image((values != 0).astype(np.uint8))
        return np.asarray(image.resize(tuple(self.pixels), Image.Resampling.NEAREST)) > 0

    def position(self, i: float, j: float) -> tuple[float, float]:
        """Voxel (i, j) in pixels of the picture."""
        scale = self.pixels / self.size
        x, y = (np.array([i, j], dtype=float) + 0.5) * scale
        return (
            float(self.pixels[0] - x if self.flips[0] else x),
            float(self.pixels[1] - y if self.flips[1] else y),
        )

    def _image(self, values: NDArray) -> Image.Image:
        i, j = (slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return Image.fromarray(np.ascontiguousarray(values[i, j].swapaxes(0, 1)))


def _points_away(direction: NDArray, axis: int) -> bool:
    """Whether an axis in RAS+ runs against the screen: x to the patient's left, y to the back or the feet."""
    main = int(np.argmax(np.abs(direction)))
    wanted = -1.0 if main in (0, 1) or axis == 1 else 1.0
    return bool(direction[main] * wanted < 0)


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return inside & ~ndimage.binary_erosion(inside, iterations=2)


def _draw_prompts(draw: ImageDraw.ImageDraw, view: View, prompt: Prompt, k: int) -> None:
    if prompt.box is not None and prompt.box[0, 2] <= k <= prompt.box[1, 2]:
        edges = prompt.box[:, :2] + [[-0.5], [0.5]]  # the corners are voxels inside
        corners = np.array([view.position(i, j) for i, j in edges])
        draw.rectangle((*corners.min(axis=0), *corners.max(axis=0)), outline=BOX, width=2)
    for points, colour in ((prompt.foreground, POSITIVE), (prompt.background, NEGATIVE)):
        for i, j, _ in points[np.rint(points[:, 2]) == k]:
            _draw_point(draw, *view.position(i, j), colour, positive=colour is POSITIVE)


def _draw_point(
    draw: ImageDraw.ImageDraw, x: float, y: float, colour: Colour, *, positive: bool, radius: float = 7
) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=(0, 0, 0))
    arm = radius * 0.6
    draw.line((x - arm, y, x + arm, y), fill=(0, 0, 0), width=2)
    if positive:
        draw.line((x, y - arm, x, y + arm), fill=(0, 0, 0), width=2)


def _with_legend(image: Image.Image, truth: bool, prompt: Prompt, notes: Sequence[str]) -> Image.Image:
    """`image` with a strip below that explains its colours and carries the notes."""
    font = ImageFont.load_default(size=15)
    entries: list[tuple[str, Colour]] = [("mask", MASK)]
    entries += [("truth", TRUTH)] if truth else []
    entries += [("point on the object", POSITIVE)] if len(prompt.foreground) else []
    entries += [("point off the object", NEGATIVE)] if len(prompt.background) else []
    entries += [("box", BOX)] if prompt.box is not None else []
    line, margin, width = 22, 10, max(image.width, 420)
    positions, x, y = [], margin, image.height + 8
    for text, _ in entries:
        needed = 34 + int(font.getlength(text))
        if x + needed > width and x > margin:
            x, y = margin, y + line
        positions.append((x, y))
        x += needed
    sheet = Image.new("RGB", (width, y + line * (1 + len(notes)) + 8), PANEL)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for (text, colour), (left, top) in zip(entries, positions, strict=True):
        draw.rectangle((left, top + 4, left + 12, top + 16), fill=colour)
        draw.text((left + 18, top), text, fill=(235, 235, 235), font=font)
    for number, note in enumerate(notes, start=1):
        draw.text((margin, y + line * number), note, fill=(180, 180, 180), font=font)
    return sheet
