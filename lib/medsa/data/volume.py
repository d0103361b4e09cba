"""A volume: voxels that cannot exist without their place in the patient."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, eq=False)
class Volume:
    """An image volume on its original grid.

    `voxels` (I, J, K) grey or (I, J, K, 3) RGB uint8; axes are (i, j, k) = (column, row, slice), stored so
    that one slice `voxels[:, :, k]` is contiguous in memory (Fortran order). Grey values are after rescale
    (HU for CT), MONOCHROME1 already inverted. A 2D image has K = 1.
    `affine` (4, 4) voxel -> millimetres in RAS+ (as NIfTI), centre of voxel = integer; may be sheared
    (gantry tilt). `spacing` (3,) mm.
    `modality` DICOM modality ("CT", "MR", "US", "XC" ...), "" when unknown.
    `uid` the id by which the datastore knows it (SeriesInstanceUID or file stem); never logged in clear.
    `headers` for DICOM: one dataset a slice, without pixel data, in the order of k (one for multi-frame);
    empty otherwise.
    """

    voxels: NDArray
    affine: NDArray[np.float64]
    modality: str = ""
    uid: str = ""
    headers: tuple[Dataset, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.voxels.ndim not in (3, 4) or (self.voxels.ndim == 4 and self.voxels.shape[3] != 3):
            raise ValueError(f"voxels must be (I, J, K) or (I, J, K, 3), not {self.voxels.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError("affine must be a finite (4, 4) matrix")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K)."""
        i, j, k = self.voxels.shape[:3]
        return i, j, k

    @property
    def is_rgb(self) -> bool:
        return self.voxels.ndim == 4

    @property
    def nbytes(self) -> int:
        """Memory of the voxels."""
        return self.voxels.nbytes

    @cached_property
    def spacing(self) -> NDArray[np.float64]:
        """Distance between neighbouring voxels along i, j, k in millimetres, (3,)."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def slice_digest(self, k: int) -> str:
        """Content hash of slice k's pixels and their type: the first part of an embedding's key."""
        pixels = np.ascontiguousarray(self.voxels[:, :, k].swapaxes(0, 1))
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{pixels.shape}{pixels.dtype.str}".encode())
        digest.update(pixels.data)
        return digest.hexdigest()
