"""NRRD files, which OHIF and 3D Slicer send and expect: raw or gzipped voxels with their place."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import nrrd
import numpy as np
from numpy.typing import NDArray

from medsa.data.geometry import LPS_TO_RAS, grid_of
from medsa.data.limits import check_memory
from medsa.data.volume import Volume
from medsa.errors import UnreadableImageError

_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **{"float": "f4", "double": "f8"},
}
_NRRD_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0)),
}
"""Signs of the first two axes towards RAS+."""


def read_nrrd(path: Path) -> tuple[NDArray, NDArray[np.float64]]:
    """Values (I, J, K) as stored and the RAS+ affine of an NRRD file that holds its voxels raw or gzipped."""
    with path.open("rb") as file:
        header = nrrd.read_header(file)
        kind, encoding = _NRRD_TYPES.get(str(header["type"])), str(header["encoding"]).lower()
        if kind is None or encoding not in ("raw", "gzip", "gz"):
            raise UnreadableImageError(
                f"the NRRD file holds {header['type']} as {encoding}; write it raw or gzipped"
            )
        if not {"data file", "datafile", "line skip", "byte skip"}.isdisjoint(header):
            raise UnreadableImageError("the NRRD file keeps its voxels elsewhere; give one with them inside")
        grid = grid_of(tuple(int(size) for size in header["sizes"]))
        dtype = np.dtype(kind).newbyteorder(">" if header.get("endian") == "big" else "<")
        check_memory(grid, dtype.itemsize + 4)
        size = math.prod(grid) * dtype.itemsize
        data = file.read(size) if encoding == "raw" else zlib.decompressobj(31).decompress(file.read(), size)
    values = np.frombuffer(data, dtype, math.prod(grid)).reshape(grid, order="F")
    affine = np.eye(4)
    directions = np.asarray(
        header.get("space directions", np.diag(header.get("spacings", [1.0] * 3))), np.float64
    )
    directions = directions[np.isfinite(directions).all(axis=1)]
    affine[: directions.shape[1], : directions.shape[0]] = directions.T
    affine[: directions.shape[1], 3] = header.get("space origin", np.zeros(directions.shape[1]))
    signs = _NRRD_SPACES.get(str(header.get("space", "left-posterior-superior")).lower())
    if signs is None:
        raise UnreadableImageError(f"the NRRD file's space '{header['space']}' is not known")
    return values, np.diag([*signs, 1.0, 1.0]) @ affine


def nrrd_bytes(mask: NDArray, volume: Volume) -> bytes:
    """`mask` (I, J, K) uint8 or bool as a raw-encoded NRRD file in memory, with the volume's place in LPS."""
    lps = LPS_TO_RAS @ volume.affine
    vectors = ["(" + ",".join(repr(float(number)) for number in column) + ")" for column in lps[:3].T]
    header = "\n".join(
        (
            "NRRD0004",
            "type: uint8",
            "dimension: 3",
            "space: left-posterior-superior",
            f"sizes: {' '.join(str(size) for size in mask.shape)}",
            f"space directions: {' '.join(vectors[:3])}",
            "kinds: domain domain domain",
            "encoding: raw",
            f"space origin: {vectors[3]}",
            "\n",
        )
    )
    voxels = np.ascontiguousarray(mask.T).view(np.uint8)
    return b"".join((header.encode("ascii"), voxels.data))
