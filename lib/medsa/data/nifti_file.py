"""NIfTI files: the stored voxels, their scale and their place, read to the end so that damage is noticed."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from medsa.data.geometry import grid_of
from medsa.data.limits import check_memory
from medsa.errors import UnreadableImageError

RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_PADDING = 2**20


def read_nifti(path: Path) -> tuple[NDArray, float, float, NDArray[np.float64]]:
    """Stored values (I, J, K), slope, intercept and RAS+ affine of a .nii or .nii.gz file with one volume.

    The values are numbers or `RGB24`. Raises `UnreadableImageError` for other types and more dimensions,
    `TooLargeError` before unpacking, and what nibabel and zlib raise for damaged files.
    """
    image = nibabel.load(path)
    grid, dtype = grid_of(image.shape), image.get_data_dtype()
    if dtype.kind not in "buif" and dtype != RGB24:
        raise UnreadableImageError(f"the voxels are of type {dtype}, not numbers that can be shown as grey")
    check_memory(grid, dtype.itemsize + 4)
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as file:
            image = type(image).from_stream(file)
            values = np.asanyarray(image.dataobj.get_unscaled())
            if len(file.read(_PADDING)) == _PADDING:  # the checksum is compared where the data ends
                raise UnreadableImageError("the file unpacks to more than its header says")
    else:
        values = np.array(image.dataobj.get_unscaled())
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    return values.reshape(grid, order="F"), slope, intercept, np.asarray(image.affine, np.float64)
