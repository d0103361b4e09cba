"""A case of a public data set: its image, and its label in whatever way the data set stores it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medsa.data.limits import check_memory
from medsa.data.nifti_file import read_nifti
from medsa.data.read import NIFTI, UNREADABLE, compact, read_volume
from medsa.data.read_label import on_grid
from medsa.data.volume import Volume
from medsa.errors import LabelMismatchError, UnreadableImageError
from medsa.training.cases import Case

LARGEST_XML = 2**20
SHOWN = 20
_MARK = re.compile(r"<mark>\s*<image>\s*(\d+)\s*</image>\s*<svg>(.*?)</svg>", re.DOTALL)


@dataclass(frozen=True)
class StoredCase(Case):
    """A `Case` whose label may be a picture in colours, other values, or polygons; see `spec.Dataset`."""

    modality: str = ""
    channel: int = 0
    values: Mapping[int, int] = field(default_factory=dict)
    others: tuple[int, ...] = ()
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    polygons: str = ""
    """The number of the image among those that an XML file is about, "" where the label is a mask."""

    def read(self) -> tuple[Volume, NDArray[np.uint8], dict[int, str]]:
        """As `Case.read`; a label without an object is empty. Raises what is wrong with the files."""
        volume = self.volume()
        try:
            mask = self._mask(volume)
        except (UnreadableImageError, LabelMismatchError) as error:
            raise type(error)(f"{self.label.name}: {error}") from error
        except (*UNREADABLE, Image.DecompressionBombError) as error:
            raise UnreadableImageError(
                f"{self.label.name}: the label is cut off, damaged, or of another kind"
            ) from error
        found = [int(value) for value in np.unique(mask) if value]
        return volume, mask, {value: self.names.get(value, f"label {value}") for value in found}

    def volume(self) -> Volume:
        """The image, with the data set's modality where the file says none."""
        volume = _channel(self.image, self.channel) or read_volume(self.image)
        return volume if volume.modality else replace(volume, modality=self.modality)

    def _stored(self, volume: Volume) -> NDArray:
        """What the label file holds on the image's grid, as it is; colours (I, J, K, 3) where it is one."""
        if self.label.name.lower().endswith(NIFTI):
            values, slope, intercept, affine = read_nifti(self.label)
            return on_grid(compact(values, slope, intercept), affine, volume)
        with Image.open(self.label, formats=("PNG", "BMP", "GIF", "JPEG")) as picture:
            check_memory((picture.width, picture.height), 8)
            values = np.asarray(picture.convert("RGB") if self.colours else _grey(picture))
        found = values.swapaxes(0, 1)[:, :, None]
        if found.shape[:3] != volume.shape:
            raise LabelMismatchError(f"its size {found.shape[:2]} is not the image's {volume.shape[:2]}")
        return found

    def _mask(self, volume: Volume) -> NDArray[np.uint8]:
        if self.polygons:
            return _drawn(self.label, self.polygons, volume.shape)
        values = self._stored(volume)
        mask = np.zeros(volume.shape, np.uint8, order="F")
        if self.colours:
            for value, colour in self.colours.items():
                mask[(values == colour).all(axis=-1)] = value
            self._check_known(values[(mask == 0) & values.any(axis=-1)])
            return mask
        known = self.values or {value: value for value in self.names}
        for stored, value in known.items():
            mask[values == stored] = value
        if known:
            self._check_known(values[(mask == 0) & ~np.isin(values, [0, *self.others])])
            return mask
        mask[...] = values.astype(np.uint8)
        if (mask != values).any():
            raise LabelMismatchError("a label must hold whole numbers from 0 to 255")
        return mask

    def _check_known(self, unknown: NDArray) -> None:
        """Raise `LabelMismatchError` for values (N,) or colours (N, 3) that the data set does not have."""
        if not len(unknown):
            return
        told, each = np.unique(unknown, axis=0).tolist(), "colours" if self.colours else "values"
        there = (
            self.colours.values() if self.colours else sorted({0, *(self.values or self.names), *self.others})
        )
        raise LabelMismatchError(
            f"holds {each} that the data set does not have, {_listed(told)}: expected {_listed(there)}"
        )


def _channel(path: Path, channel: int) -> Volume | None:
    """One channel of a NIfTI file with four dimensions; None for any other file."""
    if not path.name.lower().endswith(NIFTI):
        return None
    try:
        image = nibabel.load(path)
        if len(image.shape) != 4 or image.shape[3] == 1:
            return None
        if channel >= image.shape[3]:
            raise UnreadableImageError(f"{path.name}: there is no channel {channel} of {image.shape[3]}")
        check_memory(image.shape[:3], 8)
        voxels = compact(np.asfortranarray(np.asanyarray(image.dataobj[..., channel])))
        return Volume(voxels, np.asarray(image.affine, np.float64), "", path.name.partition(".")[0])
    except UNREADABLE as error:
        raise UnreadableImageError(f"{path.name}: the file is cut off or damaged") from error


def _listed(values: Iterable[float | Sequence[int]]) -> str:
    """Values, or colours in brackets, the first few of them."""
    told = [
        f"{value:g}" if isinstance(value, int | float) else f"({','.join(map(str, value))})"
        for value in values
    ]
    return ", ".join(told[:SHOWN]) + (f" and {len(told) - SHOWN} more" if len(told) > SHOWN else "")


def _grey(picture: Image.Image) -> Image.Image:
    return picture if picture.mode in ("L", "P", "1", "I;16", "I") else picture.convert("L")


def _drawn(path: Path, image: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The polygons that an XML file has for one of its images, filled with 1."""
    if path.stat().st_size > LARGEST_XML:
        raise UnreadableImageError("the file is too large for a few polygons")
    picture = Image.new("L", shape[:2])
    draw = ImageDraw.Draw(picture)
    try:
        for number, drawn in _MARK.findall(path.read_text("utf-8")):
            regions = json.loads(drawn) if number == image and drawn.strip() else []
            for region in regions:
                corners = [(float(point["x"]), float(point["y"])) for point in region["points"]]
                if len(corners) > 2:
                    draw.polygon(corners, fill=1)
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableImageError("the polygons cannot be read") from error
    return np.asfortranarray(np.asarray(picture).T[:, :, None])
