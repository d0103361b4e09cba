"""A mask as the bytes a client asked for: NRRD, NIfTI or DICOM SEG, alone or in a multipart form."""

from __future__ import annotations

import gzip
import io
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray
from starlette.types import Receive, Scope, Send

import medsa
from medsa.data.labels import LabelSet
from medsa.data.seg import Algorithm, write_seg
from medsa.data.volume import Volume
from medsa.data.write import nrrd_bytes, write_mask
from medsa.errors import BadInputError
from medsa.server import auth
from medsa.server.scratch import scratch

OCTETS = "application/octet-stream"
PIECE = 1 << 18


def mask_bytes(mask: NDArray[np.uint8], volume: Volume, extension: str) -> bytes:
    """`mask` (I, J, K) on the grid of `volume` as a file ending in `.nrrd` (raw), `.nii` or `.nii.gz`."""
    if extension == ".nrrd":
        return nrrd_bytes(mask, volume)
    with scratch() as folder:
        path = folder / f"mask{extension}"
        write_mask(path, mask, volume)
        return path.read_bytes()


def cropped(mask: NDArray[np.uint8], volume: Volume) -> tuple[NDArray[np.uint8], int, Volume]:
    """The slices from the first to the last that holds something, the first one's number, and their grid.

    A slice of a large volume is sent in a hundredth of the bytes. Of an empty mask the first slice is given.
    """
    held = np.flatnonzero(mask.any(axis=(0, 1)))
    first, last = (int(held[0]), int(held[-1]) + 1) if held.size else (0, 1)
    affine = volume.affine.copy()
    affine[:3, 3] += first * affine[:3, 2]
    part = replace(volume, voxels=volume.voxels[:, :, first:last], affine=affine, headers=())
    return mask[:, :, first:last], first, part


def seg_bytes(
    mask: NDArray[np.uint8],
    volume: Volume,
    labels: LabelSet,
    names: Mapping[int, str],
    model: str,
    tag: str = "final",
) -> bytes:
    """`mask` as a DICOM SEG, its values called `names`, SEMIAUTOMATIC by `model`; `tag` as in `write_seg`.

    Raises `BadInputError` when the image is no DICOM.
    """
    if not volume.headers:
        raise BadInputError("a DICOM SEG is made for DICOM images only: ask for output=image instead")
    algorithm = Algorithm(model, medsa.__version__)
    dataset = write_seg(mask, volume, labels, names=names, algorithm=algorithm, tag=tag)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


class Pieces(Response):
    """A body sent piece by piece, so that the event loop serves others in between."""

    def __init__(
        self, parts: Sequence[bytes], media_type: str, headers: Mapping[str, str] | None = None
    ) -> None:
        self.parts = parts
        size = {"content-length": str(sum(map(len, parts)))}
        super().__init__(None, media_type=media_type, headers={**(headers or {}), **size})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for part in self.parts:
            for start in range(0, len(part), PIECE):
                body = part[start : start + PIECE]
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body"})


def multipart(params: Mapping[str, Any], image: bytes, extension: str) -> Pieces:
    """What MONAI Label's client and 3D Slicer read: `params` as JSON, then `image` as a file.

    The file's name is different each time, since clients store it under this name in a common folder.
    """
    boundary = secrets.token_hex(16)
    name = f"medsa-{secrets.token_hex(6)}{extension}"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(params)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {OCTETS}\r\n\r\n"
    )
    parts = (head.encode(), image, f"\r\n--{boundary}--\r\n".encode())
    return Pieces(parts, f"multipart/form-data; boundary={boundary}")


def file(content: bytes, extension: str, media_type: str = OCTETS) -> Pieces:
    """`content` as a download."""
    return Pieces((content,), media_type, {"Content-Disposition": f'attachment; filename="medsa{extension}"'})


def compressed(response: Pieces, request: Request) -> Pieces:
    """`response` gzipped when the client takes that and there is a network in between.

    A mask shrinks a hundredfold in little time; on loopback copying it is quicker still.
    """
    client = request.client.host if request.client else None
    if auth.is_loopback(client) or "gzip" not in request.headers.get("accept-encoding", ""):
        return response
    body = gzip.compress(b"".join(response.parts), compresslevel=1, mtime=0)
    response.parts = (body,)
    response.headers.update(
        {"content-length": str(len(body)), "content-encoding": "gzip", "vary": "Accept-Encoding"}
    )
    return response
