"""Label files to masks on an image's grid: turned and flipped where the grid is the same, never resampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsa.data.labels import LabelSet
from medsa.data.limits import check_memory
from medsa.data.nifti_file import read_nifti
from medsa.data.nrrd_file import read_nrrd
from medsa.data.read import NIFTI, NRRD, UNREADABLE, compact, read_dataset
from medsa.data.seg import check_mask, read_seg
from medsa.data.volume import Volume
from medsa.errors import LabelMismatchError, NotFoundError, UnreadableImageError

_OFF_GRID = 0.3
"""Voxels by which a corner may miss the image's grid: headers hold few digits."""


def read_label(
    path: Path, volume: Volume, labels: LabelSet | None = None, *, empty: bool = False, white: int = 1
) -> NDArray[np.uint8]:
    """A label map (I, J, K) uint8 on `volume`'s grid: .nii, .nii.gz, .nrrd, .seg.nrrd, .png or DICOM SEG.

    NIfTI and NRRD files in another axis order or direction are turned to the image's by their affine; a
    .seg.nrrd may cover a part of the image. White (255) in a picture without other values means `white`,
    unless its palette shows another colour for it. SEG values are the indices of `labels`, or segment numbers
    without. Raises `LabelMismatchError` for another grid, values beyond 255 and, unless it may be `empty`, a
    label that marks nothing; `UnreadableImageError` for damaged files, `NotFoundError`.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"there is no label file '{path.name}'")
    name = path.name.lower()
    try:
        if name.endswith(NIFTI):
            values, slope, intercept, affine = read_nifti(path)
            return check_mask(on_grid(compact(values, slope, intercept), affine, volume), volume, empty=empty)
        if name.endswith(NRRD):
            values, affine = read_nrrd(path)
            whole = on_grid(values, affine, volume, part=name.endswith(".seg.nrrd"))
            return check_mask(whole, volume, empty=empty)
        if name.endswith(".png"):
            return check_mask(_picture(path, white), volume, empty=empty)
        dataset = read_dataset(path)
        if dataset is None:
            raise UnreadableImageError("the label file is neither NIfTI, NRRD, PNG nor DICOM")
        return read_seg(dataset, volume, labels)[0]
    except (UnreadableImageError, LabelMismatchError) as error:
        raise type(error)(f"{path.name}: {error}") from error
    except (*UNREADABLE, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"{path.name}: the label is cut off, damaged, or of another kind"
        ) from error


def on_grid(values: NDArray, affine: NDArray[np.float64], volume: Volume, *, part: bool = False) -> NDArray:
    """`values` (3D, RAS+ `affine`) with axes turned and flipped so that they lie as those of `volume` do.

    Raises `LabelMismatchError` unless both are the same grid; with `part` the values may cover a part of it.
    """
    if not np.isfinite(affine).all():
        raise LabelMismatchError("the label's geometry is not finite")
    exact = np.linalg.inv(volume.affine) @ affine
    whole = np.rint(exact)
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in values.shape])).reshape(3, -1)
    miss = np.abs((exact - whole) @ np.vstack([corners, np.ones(8)])).max()
    turn = np.abs(whole[:3, :3])
    if miss > _OFF_GRID or (turn.sum(axis=0) != 1).any() or (turn.sum(axis=1) != 1).any():
        raise LabelMismatchError("the label lies on another grid than the image: resample it to the image")
    axes = turn.argmax(axis=1)
    turned = values.transpose(axes)
    flips = whole[np.arange(3), axes] < 0
    start = whole[:3, 3] - np.where(flips, np.array(turned.shape) - 1, 0)
    turned = np.flip(turned, np.flatnonzero(flips))
    if turned.shape == volume.shape and not start.any():
        return np.asfortranarray(turned)
    first = start.astype(int)
    if not part or (first < 0).any() or (first + turned.shape > volume.shape).any():
        raise LabelMismatchError(
            f"the label covers {' x '.join(map(str, turned.shape))} voxels from {tuple(first.tolist())}, not "
            f"the image's {' x '.join(map(str, volume.shape))}"
        )
    full = np.zeros(volume.shape, values.dtype, order="F")
    full[tuple(slice(a, a + n) for a, n in zip(first, turned.shape, strict=True))] = turned
    return full


def _picture(path: Path, white: int) -> NDArray:
    with Image.open(path, formats=("PNG",)) as image:
        check_memory((image.width, image.height), 8)
        if image.mode not in ("1", "L", "P", "I;16", "I"):
            raise LabelMismatchError("the picture is in colour: a label must be one channel of label values")
        values = np.asarray(image).T[:, :, None]
        if image.mode == "P" and (image.getpalette() or [])[765:] != [255, 255, 255]:
            return values
    if values.dtype == np.bool_ or set(np.unique(values)) <= {0, 255}:
        return np.where(values, np.uint8(white), np.uint8(0))
    return values
