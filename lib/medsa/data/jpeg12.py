"""12-bit JPEG (Extended, Process 2 and 4) for pydicom: GDCM reads it, but pydicom does not ask it to."""

from __future__ import annotations

import gdcm
from pydicom.pixels.decoders import JPEGExtended12BitDecoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("gdcm>=3.0.10",)}
_LABEL = "medsa"


def is_available(uid: str) -> bool:
    """pydicom asks whether this module decodes the transfer syntax `uid`."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One encoded grey frame as pixels of 16 bits, little endian; raises `ValueError` for anything else."""
    if runner.samples_per_pixel != 1 or runner.bits_allocated != 16:
        raise ValueError("12-bit JPEG is decoded for grey frames of 16 bits only")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    meaning = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(meaning))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    stored = runner.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, stored, stored - 1, runner.pixel_representation))
    pixels: str | None = image.GetBuffer()
    if not pixels:
        raise ValueError("GDCM cannot decode the frame")
    return pixels.encode("utf-8", "surrogateescape")


def register() -> None:
    """Make pydicom use this module for its transfer syntax; doing so again changes nothing."""
    if _LABEL not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin(_LABEL, (__name__, "decode_frame"))
