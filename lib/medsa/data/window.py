"""Intensity windows: which values of a volume become black and white."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medsa.data.volume import Volume
from medsa.errors import BadInputError

CT_WINDOWS: dict[str, tuple[float, float]] = {
    "soft-tissue": (-160.0, 240.0),
    "abdomen": (-150.0, 250.0),
    "liver": (-45.0, 105.0),
    "mediastinum": (-125.0, 225.0),
    "lung": (-1350.0, 150.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
    "subdural": (-20.0, 180.0),
    "stroke": (20.0, 60.0),
    "temporal-bone": (-800.0, 2000.0),
    "angiography": (-100.0, 600.0),
}
"""Lowest and highest Hounsfield unit of each named window."""

WINDOW_NAMES = ("auto", *CT_WINDOWS, "mr", "dicom", "full", "rgb")

_MEASURED = ("CT", "MR", "PT", "NM")
"""Modalities whose values have no common scale, even when they are stored in 8 bits."""

_PERCENTILES = (0.5, 99.5)
_SAMPLES = 250_000


@dataclass(frozen=True)
class Window:
    """Values from `low` (black) to `high` (white); hashable, `str()` tells the user what was chosen."""

    low: float
    high: float
    name: str = ""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise BadInputError(
                f"a window needs two finite values, low below high, not {self.low:g},{self.high:g}"
            )

    def __str__(self) -> str:
        values = f"{self.low:g},{self.high:g}"
        return f"{self.name} ({values})" if self.name else values


def check_window(spec: str) -> None:
    """Raise `BadInputError` naming the known windows when `spec` is neither one of them nor `LOW,HIGH`."""
    if spec not in WINDOW_NAMES:
        _parsed(spec)


def choose_window(volume: Volume, spec: str = "auto") -> Window:
    """The window `spec` means for `volume`.

    `auto`: RGB as it is; CT (or values that look like Hounsfield units) soft tissue; pictures of 8 bits full
    range; else as `mr`: percentiles 0.5 to 99.5 of the values that are not zero, over the whole volume.
    `dicom`: the header's own WindowCenter and WindowWidth. `full`: lowest to highest value. `LOW,HIGH`: these
    values. A CT window's name: that window. The same volume and spec give the same window, and RGB images
    ignore it. Raises `BadInputError`.
    """
    if volume.is_rgb:
        check_window(spec)
        return Window(0.0, 255.0, "rgb")
    if spec == "auto" and _is_picture(volume):
        return Window(0.0, 255.0, "full")
    if spec == "auto":
        spec = "soft-tissue" if _is_ct(volume) else "mr"
    if spec in CT_WINDOWS:
        return Window(*CT_WINDOWS[spec], spec)
    if spec == "rgb":
        raise BadInputError("the window 'rgb' is for colour images; this one is grey")
    if spec == "full":
        return _spanning(float(volume.voxels.min()), float(volume.voxels.max()), "full")
    if spec == "mr":
        sample = _sample(volume)
        inside = sample[sample != 0]
        low, high = np.percentile(inside if inside.size else sample, _PERCENTILES)
        return _spanning(float(low), float(high), "mr")
    if spec == "dicom":
        return _from_header(volume)
    return _parsed(spec)


def apply_window(pixels: NDArray, window: Window) -> NDArray[np.float32]:
    """`pixels` of any shape: `window.low` and below as 0, `window.high` and above as 255, linear between."""
    scale = np.float32(255.0 / (window.high - window.low))
    grey = pixels.astype(np.float32)
    grey -= np.float32(window.low)
    grey *= scale
    return np.clip(grey, 0.0, 255.0, out=grey)


def _parsed(spec: str) -> Window:
    try:
        low, high = (float(value) for value in spec.split(","))
    except ValueError:
        raise BadInputError(
            f"unknown window '{spec}'; choose one of: {', '.join(WINDOW_NAMES)}, or LOW,HIGH as in -100,300"
        ) from None
    return Window(low, high)


def _is_picture(volume: Volume) -> bool:
    """8 bits of what a screen shows; a file that does not say its modality is a picture if one slice."""
    shown = volume.modality not in _MEASURED if volume.modality else volume.shape[2] == 1
    return shown and volume.voxels.dtype == np.uint8


def _is_ct(volume: Volume) -> bool:
    """By modality; files without one by their values: air (below -700) and tissue, none far beyond both."""
    if volume.modality:
        return volume.modality == "CT"
    low, high = np.percentile(_sample(volume), (1, 99))
    return bool(-3100 <= low <= -700 and 0 <= high <= 5000)


def _sample(volume: Volume) -> NDArray:
    """About 250,000 values spread over the volume, always the same ones."""
    values = volume.voxels.reshape(-1, order="F")
    step = max(1, values.size // _SAMPLES)
    while math.gcd(step, volume.shape[0] * volume.shape[1]) > 1:
        step += 1
    return values[::step]


def _spanning(low: float, high: float, name: str) -> Window:
    return Window(low, high if high > low else low + 1.0, name)


def _from_header(volume: Volume) -> Window:
    header = volume.headers[len(volume.headers) // 2] if volume.headers else Dataset()
    centre, width = header.get("WindowCenter"), header.get("WindowWidth")
    if centre in (None, "") or width in (None, ""):
        raise BadInputError("the image's header holds no window; choose another than 'dicom'")
    centre, width = (float(np.atleast_1d(value)[0]) for value in (centre, width))
    if width < 1:
        raise BadInputError("the window in the image's header is no window; choose another than 'dicom'")
    return Window(centre - width / 2, centre + width / 2, "dicom")
