"""Pictures that installed packages ship, cut and turned into many: images for the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsa.data.read import read_volume
from medsa.data.volume import Volume
from medsa.data.window import apply_window, choose_window
from medsa.errors import MedsaError

Pixels = NDArray[np.uint8]

PACKAGED = {
    "skimage.data": (
        "astronaut.png", "camera.png", "cell.png", "chelsea.png", "coffee.png", "coins.png", "ihc.png",
        "motorcycle_left.png", "retina.jpg", "rocket.jpg", "moon.png", "hubble_deep_field.jpg",
    ),
    "sklearn.datasets": ("images/china.jpg", "images/flower.jpg"),
}  # fmt: skip
"""Pictures of scikit-image (public domain or CC0) and scikit-learn (CC BY), by package."""

DICOM = (
    "CT_small.dcm", "MR_small.dcm", "liver_1frame.dcm", "examples_ybr_color.dcm", "examples_jpeg2k.dcm",
    "examples_palette.dcm",
)  # fmt: skip
"""pydicom's own files."""


def packaged() -> dict[str, Pixels]:
    """All pictures there are, (H, W) or (H, W, 3) uint8 by name; a package that lacks one is passed over."""
    found = {}
    for package, names in PACKAGED.items():
        for name in names:
            path = files(package).joinpath(name)
            if path.is_file():
                with path.open("rb") as file, Image.open(file) as image:
                    found[name] = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    found |= {name: pixels for name in DICOM for pixels in _dicom(name)}
    return found


def brain_slices() -> Callable[[np.random.Generator], Pixels]:
    """Slices of nilearn's MNI152 template: a function that draws one, of any of three directions."""
    from nilearn import datasets

    head = datasets.load_mni152_template(resolution=1).get_fdata()
    grey = (head / np.percentile(head[head > 0], 99.5)).clip(0, 1)

    def drawn(rng: np.random.Generator) -> Pixels:
        axis = int(rng.integers(3))
        k = int(rng.uniform(0.2, 0.8) * grey.shape[axis])
        return (np.rot90(grey.take(k, axis)) * 255).astype(np.uint8)

    return drawn


def varied(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A random part of a picture, turned, mirrored and recoloured."""
    height, width = pixels.shape[:2]
    side = rng.uniform(0.35, 1.0, 2) if min(height, width) >= 200 else rng.uniform(0.7, 1.0, 2)
    rows, columns = (max(48, int(part * length)) for part, length in zip(side, (height, width), strict=True))
    top, left = int(rng.integers(max(1, height - rows + 1))), int(rng.integers(max(1, width - columns + 1)))
    part = np.rot90(pixels[top : top + rows, left : left + columns], int(rng.integers(4)))
    part = part[:, ::-1] if rng.random() < 0.5 else part
    values = part.astype(np.float64) / 255
    if values.ndim == 3:
        values = values[..., rng.permutation(3)] if rng.random() < 0.3 else values
        values = values * rng.uniform(0.7, 1.2, 3)
        values = values.mean(axis=2) if rng.random() < 0.25 else values
    elif rng.random() < 0.4:
        values = 1 - values
    values = values.clip(0, 1) ** np.exp(rng.uniform(-0.6, 0.6)) * rng.uniform(0.6, 1.2)
    values = values + rng.uniform(0, 0.05) * rng.standard_normal(values.shape)
    return (values.clip(0, 1) * 255).round().astype(np.uint8)


def as_volume(pixels: Pixels) -> Volume:
    """A picture (H, W) or (H, W, 3) as a volume of one slice."""
    return Volume(np.asfortranarray(pixels.swapaxes(0, 1)[:, :, None]), np.eye(4))


def _dicom(name: str) -> Iterator[Pixels]:
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    if path is None:
        return
    try:
        volume = read_volume(Path(str(path)))
    except MedsaError:
        return
    grey = apply_window(volume.voxels[:, :, volume.shape[2] // 2], choose_window(volume))
    yield np.ascontiguousarray(grey.swapaxes(0, 1)).astype(np.uint8)
