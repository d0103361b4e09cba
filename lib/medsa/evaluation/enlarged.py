"""Small images drawn larger before anything is asked about them, so that a click falls between voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medsa.data.limits import check_memory
from medsa.data.volume import Volume


def enlarged(volume: Volume, mask: NDArray[np.uint8], pixels: int) -> tuple[Volume, NDArray[np.uint8]]:
    """`volume` and its `mask` (I, J, K) with slices of `pixels` on the longest side; larger ones as they are.

    Images are bilinear, labels nearest. Voxels become smaller: places in millimetres stay the same.
    Raises `TooLargeError` for what memory does not hold.
    """
    old = volume.shape[:2]
    if max(old) >= pixels:
        return volume, mask
    new = [round(side * pixels / max(old)) for side in old]
    check_memory((*new, *volume.voxels.shape[2:]), 3 * 4)  # it and its copies while it is made
    finer = np.eye(4)
    for axis, step in enumerate(np.divide(old, new)):
        finer[axis, axis], finer[axis, 3] = step, (step - 1) / 2  # outer edges stay where they are
    voxels = _scaled(volume.voxels, new, "bilinear")
    return replace(volume, voxels=voxels, affine=volume.affine @ finer), _scaled(mask, new, "nearest-exact")


def _scaled(array: NDArray, size: Sequence[int], mode: str) -> NDArray:
    """`array` (I, J, ...) with other I and J, in its own type."""
    flat = torch.from_numpy(array.reshape(*array.shape[:2], -1).astype(np.float32))
    large = F.interpolate(flat.permute(2, 0, 1)[None], tuple(size), mode=mode)[0].permute(1, 2, 0).numpy()
    if np.issubdtype(array.dtype, np.integer):
        large = large.round()
    return np.asfortranarray(large.reshape(*size, *array.shape[2:]).astype(array.dtype))
