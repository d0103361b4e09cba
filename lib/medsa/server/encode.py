"""A mask as the bytes a client asked for: NRRD, NIfTI or DICOM SEG, alone or in a multipart form."""

from __future__ import annotations

import gzip
import io
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from numpy.typing import NDArray

import medsa
from medsa.data.labels import LabelSet
from medsa.data.seg import Algorithm, write_seg
from medsa.data.volume import Volume
from medsa.data.write import nrrd_bytes, write_mask
from medsa.errors import BadInputError
from medsa.server import auth
from medsa.server.scratch import scratch

OCTETS = "application/octet-stream"


def mask_bytes(mask: NDArray[np.uint8], volume: Volume, extension: str) -> bytes:
    """`mask` (I, J, K) on the grid of `volume` as a file ending in `.nrrd` (raw), `.nii` or `.nii.gz`."""
    if extension == ".nrrd":
        return nrrd_bytes(mask, volume)
    with scratch() as folder:
        path = folder / f"mask{extension}"
        write_mask(path, mask, volume)
        return path.read_bytes()


def seg_bytes(
    mask: NDArray[np.uint8], volume: Volume, labels: LabelSet, names: Sequence[str], model: str
) -> bytes:
    """`mask` as a DICOM SEG, SEMIAUTOMATIC by `model`; raises `BadInputError` when the image is no DICOM."""
    if not volume.headers:
        raise BadInputError("a DICOM SEG is made for DICOM images only: ask for output=image instead")
    algorithm = Algorithm(model, medsa.__version__)
    dataset = write_seg(mask, volume, labels, names=dict(enumerate(names, 1)) or None, algorithm=algorithm)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def multipart(params: Mapping[str, Any], image: bytes, extension: str) -> Response:
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
    body = b"".join((head.encode(), image, f"\r\n--{boundary}--\r\n".encode()))
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")


def file(content: bytes, extension: str, media_type: str = OCTETS) -> Response:
    """`content` as a download."""
    disposition = f'attachment; filename="medsa{extension}"'
    return Response(content, media_type=media_type, headers={"Content-Disposition": disposition})


def compressed(response: Response, request: Request) -> Response:
    """`response` gzipped when the client takes that and there is a network in between.

    A mask shrinks a hundredfold in little time; on loopback copying it is quicker still.
    """
    client = request.client.host if request.client else None
    if auth.is_loopback(client) or "gzip" not in request.headers.get("accept-encoding", ""):
        return response
    body = gzip.compress(bytes(response.body), compresslevel=1, mtime=0)
    if len(body) < len(response.body):
        response.body = body
        response.headers["content-length"] = str(len(body))
        response.headers["content-encoding"] = "gzip"
    response.headers["vary"] = "Accept-Encoding"
    return response
