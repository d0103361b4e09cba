"""The child process that decodes JPEG frames with GDCM, which ends its process on some damaged ones.

`medsa.data.gdcm_decoder` starts this file and talks to it: a request is a line of JSON (see `Request`) and
the encoded frame of `length` bytes, the answer a line with the number of bytes, and the pixels.
"""

from __future__ import annotations

import json
import sys
from typing import TypedDict

import gdcm


class Request(TypedDict):
    """What GDCM must know of a frame."""

    length: int
    syntax: str
    photometric: str
    rows: int
    columns: int
    samples: int
    planar: int
    allocated: int
    stored: int
    signed: int


def decode(source: bytes, request: Request) -> bytes:
    """Pixels of one encoded frame, little endian; empty when GDCM says that it cannot."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((request["columns"], request["rows"], 1))
    image.SetDataElement(element)
    meaning = gdcm.PhotometricInterpretation.GetPIType(request["photometric"])
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(meaning))
    if request["samples"] > 1:
        image.SetPlanarConfiguration(request["planar"])
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(request["syntax"])))
    stored = request["stored"]
    image.SetPixelFormat(
        gdcm.PixelFormat(request["samples"], request["allocated"], stored, stored - 1, request["signed"])
    )
    pixels = image.GetBuffer()
    return pixels.encode("utf-8", "surrogateescape") if pixels else b""


def main() -> None:
    """Answer requests from standard input until it ends."""
    while line := sys.stdin.buffer.readline():
        request: Request = json.loads(line)
        pixels = decode(sys.stdin.buffer.read(request["length"]), request)
        sys.stdout.buffer.write(b"%d\n" % len(pixels) + pixels)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
