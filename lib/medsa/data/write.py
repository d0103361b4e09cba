"""Masks to files and back: NIfTI, NRRD, PNG and DICOM SEG, always on the image's own grid."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image

from medsa.data.labels import LabelSet, load_labels
from medsa.data.nifti_file import RGB24
from medsa.data.nrrd_file import nrrd_bytes
from medsa.data.seg import Algorithm, check_mask, write_seg
from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.files import write_atomically

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".png", ".dcm")
"""What `write_mask` can write."""


def write_mask(
    path: Path,
    mask: NDArray,
    volume: Volume,
    labels: LabelSet | None = None,
    *,
    names: Mapping[int, str] | None = None,
    algorithm: Algorithm | None = None,
    author: str = "",
    values: bool = False,
) -> None:
    """Write `mask` (I, J, K), label values or bool, to `path` as its ending says (see `ENDINGS`), mode 0600.

    NIfTI and NRRD carry the image's geometry. PNG is for one slice: 0 and 255 for one label, unless `values`
    are wanted, and the values with the colours of `labels` for several. DICOM SEG is written by `write_seg`
    with `labels` (else the default set), `names`, `algorithm` and `author`. The file appears whole or not at
    all. Raises `BadInputError` for other endings and for a PNG of a volume, `LabelMismatchError` for a mask
    that does not fit the image.
    """
    path = Path(path)
    ending = next((ending for ending in ENDINGS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise BadInputError(
            f"'{path.name}' ends in nothing that can be written; use one of: {', '.join(ENDINGS)}"
        )
    labels = labels or load_labels()
    if ending == ".dcm":
        buffer = io.BytesIO()
        dataset = write_seg(mask, volume, labels, names=names, algorithm=algorithm, author=author)
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
        data = buffer.getvalue()
    elif ending == ".nrrd":
        data = nrrd_bytes(check_mask(mask, volume), volume)
    elif ending == ".png":
        data = _png(check_mask(mask, volume), labels, values)
    else:
        data = nibabel.Nifti1Image(check_mask(mask, volume), volume.affine).to_bytes()
        data = gzip.compress(data, 6, mtime=0) if ending == ".nii.gz" else data
    write_atomically(path, data)


def write_image(path: Path, volume: Volume) -> None:
    """Write the voxels of `volume` to `path` as compressed NIfTI (colours as RGB24), mode 0600."""
    voxels = volume.voxels
    if volume.is_rgb:
        voxels = np.ascontiguousarray(voxels).view(RGB24)[..., 0]
    data = nibabel.Nifti1Image(voxels, volume.affine).to_bytes()
    write_atomically(path, gzip.compress(data, 1, mtime=0))


def _png(mask: NDArray[np.uint8], labels: LabelSet, values: bool) -> bytes:
    if mask.shape[2] != 1:
        raise BadInputError("a PNG holds one slice, and this is a volume: write .nii.gz, .nrrd or .dcm")
    pixels = mask[:, :, 0].T
    if not values and len(np.unique(pixels[pixels > 0])) == 1:
        picture = Image.fromarray(np.where(pixels > 0, np.uint8(255), np.uint8(0)))
    else:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        for label in labels.labels:
            palette[label.index] = label.color
        picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
