"""Masks leave in the form a client asked for, compressed only where there is a network."""

import gzip
import json

import numpy as np
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.server import encode

MASK = np.zeros((300, 400, 9), np.uint8, order="F")
MASK[10:20, 30:40, 4] = 1
VOLUME = Volume(np.zeros((300, 400, 9), np.int16, order="F"), np.diag([-1.0, -1, 2, 1]))


def client(address):
    app = FastAPI()

    @app.get("/{kind}")
    def answer(request: Request, kind: str):
        content = encode.mask_bytes(MASK, VOLUME, ".nrrd")
        made = (
            encode.file(content, ".nrrd") if kind == "file" else encode.multipart({"a": 1}, content, ".nrrd")
        )
        return encode.compressed(made, request)

    return TestClient(app, client=(address, 1))


@pytest.mark.parametrize("kind", ["file", "form"])
def test_the_body_is_whole_though_it_goes_in_pieces(kind):
    answer = client("127.0.0.1").get(f"/{kind}")
    assert int(answer.headers["content-length"]) == len(answer.content) > encode.PIECE
    assert MASK.tobytes(order="F") in answer.content
    assert "content-encoding" not in answer.headers


def test_gzip_crosses_a_network_when_the_client_takes_it():
    far = client("192.168.1.9")
    with far.stream("GET", "/file", headers={"accept-encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    assert len(raw) < MASK.size // 50
    assert gzip.decompress(raw) == encode.mask_bytes(MASK, VOLUME, ".nrrd")
    plain = far.get("/file", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_the_form_holds_the_parameters_and_a_file_of_its_own_name():
    near = client("127.0.0.1")
    first, second = near.get("/form"), near.get("/form")
    boundary = first.headers["content-type"].partition("boundary=")[2].encode()
    _, params, image, end = first.content.split(b"--" + boundary)
    assert json.loads(params.partition(b"\r\n\r\n")[2]) == {"a": 1}
    assert b'name="image"' in image
    assert end == b"--\r\n"
    assert first.content.partition(b'filename="')[2][:30] != second.content.partition(b'filename="')[2][:30]


def test_a_picture_has_no_dicom_seg():
    with pytest.raises(BadInputError, match="DICOM images only"):
        encode.seg_bytes(MASK, VOLUME, None, {1: "liver"}, "medsa_2d")
