"""Stored DICOM pixels to values: decoding, unused bits, MONOCHROME1, modality rescale, colour."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
)

from medsa.data import gdcm_decoder
from medsa.errors import UnreadableImageError

gdcm_decoder.register()

_DECODERS = {
    **dict.fromkeys(gdcm_decoder.SYNTAXES, gdcm_decoder.PLUGIN),
    **dict.fromkeys(JPEG2000TransferSyntaxes, "pylibjpeg"),
    JPEGBaseline8Bit: "pillow",
}
"""Who decodes what. GDCM never in this process, for it ends the process on some damaged frames."""

DAMAGED = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    NotImplementedError,
    OSError,
    EOFError,
    OverflowError,
    StopIteration,
    AssertionError,
    BytesLengthException,
    struct.error,
    zlib.error,
)
"""What the file libraries raise for a header or pixel data that breaks their standard."""

PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
GREY = ("MONOCHROME1", "MONOCHROME2")


def is_grey(dataset: Dataset) -> bool:
    """True for one grey sample a pixel; False for colour. Raises `UnreadableImageError` for anything else."""
    samples, meaning = (
        dataset.get("SamplesPerPixel", 1),
        dataset.get("PhotometricInterpretation", "MONOCHROME2"),
    )
    if samples == 1 and meaning in GREY:
        return True
    if (samples == 1 and meaning == "PALETTE COLOR") or (samples == 3 and meaning not in GREY):
        return False
    raise UnreadableImageError(
        f"the pixels are {meaning} with {samples} samples, which is no grey or RGB image"
    )


def decoded(dataset: Dataset) -> Iterator[NDArray]:
    """The frames of a DICOM image as stored: (rows, columns) grey values, or (rows, columns, 3) RGB uint8.

    Grey frames have unused bits removed, the modality LUT applied and MONOCHROME1 turned round. Raises
    `UnreadableImageError` for pixel data that is cut off, damaged, or of a compression nothing here can read.
    """
    grey = is_grey(dataset)
    try:
        for index in range(int(dataset.get("NumberOfFrames", 1) or 1)):
            frame = stored_frame(dataset, index)
            yield _grey(frame, dataset) if grey else _rgb(frame, dataset)
    except DAMAGED as error:
        raise UnreadableImageError(
            "the pixel data cannot be decoded: it is cut off, damaged or of an unknown kind"
        ) from error


def stored_frame(dataset: Dataset, index: int) -> NDArray:
    """Frame `index` (from 0) of any object with pixels, as stored, colour as RGB; raises one of `DAMAGED`."""
    _complete_meta(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    if dataset.get("BitsAllocated") == 1 and not syntax.is_compressed:
        return _unpacked(dataset, index)
    return pixel_array(
        dataset,
        index=index,
        decoding_plugin=_DECODERS.get(syntax, ""),
        view_only=not syntax.is_compressed,
        correct_unused_bits=syntax.is_compressed,
    )


def _unpacked(dataset: Dataset, index: int) -> NDArray[np.uint8]:
    """A frame of single bits, which may start within a byte (pydicom cannot cut it out)."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    first, start = divmod(index * rows * columns, 8)
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    if dataset.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        packed = packed.view(np.uint16).byteswap().view(np.uint8)
    bits = np.unpackbits(packed[first : first + (start + rows * columns + 7) // 8], bitorder="little")
    return bits[start : start + rows * columns].reshape(rows, columns)


def _complete_meta(dataset: Dataset) -> None:
    """Files without the DICOM header lack a transfer syntax: say the one pydicom found by reading them."""
    if getattr(dataset, "file_meta", None) is None:
        dataset.ensure_file_meta()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little or little is None else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _grey(frame: NDArray, dataset: Dataset) -> NDArray:
    if frame.dtype.kind == "f":
        return -frame if dataset.PhotometricInterpretation == "MONOCHROME1" else frame
    if not frame.dtype.isnative:
        frame = frame.astype(frame.dtype.newbyteorder("="))
    allocated, stored = 8 * frame.dtype.itemsize, int(dataset.BitsStored)
    if stored < allocated and not dataset.file_meta.TransferSyntaxUID.is_compressed:
        high = int(dataset.get("HighBit", stored - 1))
        frame = (frame << (allocated - 1 - high)) >> (allocated - stored)
    if "ModalityLUTSequence" in dataset:
        frame = apply_modality_lut(frame, dataset)
        stored = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        frame = (2**stored - 1) - frame if frame.dtype.kind == "u" else np.invert(frame)
    return frame


def _rgb(frame: NDArray, dataset: Dataset) -> NDArray[np.uint8]:
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        frame = apply_color_lut(frame, dataset)[..., :3]
        bits = 8 * frame.dtype.itemsize
    if bits > 8:
        frame = frame >> (bits - 8)
    return frame.astype(np.uint8, copy=False)


def rescaled(stored: NDArray, slopes: NDArray[np.float64], intercepts: NDArray[np.float64]) -> NDArray:
    """Values of frames (K, rows, columns): `stored * slope + intercept`, a slope and an intercept a frame.

    uint8 as it is without rescale; int16 where slopes and intercepts are integers and all values fit (in
    place for 16-bit frames: wrapped arithmetic is exact when the result fits); float32 otherwise.
    """
    plain = (slopes == 1).all() and (intercepts == 0).all()
    if plain and stored.dtype == np.uint8:
        return stored
    integral = stored.dtype.kind in "iu" and (slopes % 1 == 0).all() and (intercepts % 1 == 0).all()
    if integral:
        ends = np.array([[frame.min(), frame.max()] for frame in stored], np.float64)
        values = ends * slopes[:, None] + intercepts[:, None]
        limits = np.iinfo(np.int16)
        if limits.min <= values.min() and values.max() <= limits.max:
            short = stored.view(np.int16) if stored.dtype.itemsize == 2 else stored.astype(np.int16)
            for frame, slope, intercept in zip(short, slopes, intercepts, strict=True):
                if slope != 1:
                    frame *= np.array(int(slope)).astype(np.int16)
                if intercept != 0:
                    frame += np.array(int(intercept)).astype(np.int16)
            return short
    values = stored.astype(np.float32)
    if not plain:
        values *= slopes.astype(np.float32)[:, None, None]
        values += intercepts.astype(np.float32)[:, None, None]
    return values
