"""JPEG lossless, of 12 bits and JPEG-LS for pydicom: decoded by GDCM, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner
from pydicom.uid import JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSTransferSyntaxes

from medsa.data import gdcm_worker

PLUGIN = "medsa"
SYNTAXES = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, *JPEGLSTransferSyntaxes)
DECODER_DEPENDENCIES = dict.fromkeys(SYNTAXES, ("gdcm>=3.0.10",))
_SECONDS = 60.0
_lock = threading.Lock()
_worker: tuple[int, subprocess.Popen[bytes]] | None = None


def is_available(uid: str) -> bool:
    """pydicom asks whether this module decodes the transfer syntax `uid`."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """Pixels of one encoded frame, little endian; raises `ValueError` if GDCM cannot, dies of it or hangs."""
    stored = runner.bits_stored
    if runner.transfer_syntax in JPEGLSTransferSyntaxes:  # the stream's own precision, colours by pixel
        stored = runner.get_option("jls_precision", stored)
        runner.set_option("planar_configuration", 0)
        runner.set_option("bits_allocated", 8 if stored <= 8 else 16)
    request = gdcm_worker.Request(
        length=len(source),
        syntax=str(runner.transfer_syntax),
        photometric=str(runner.photometric_interpretation),
        rows=runner.rows,
        columns=runner.columns,
        samples=runner.samples_per_pixel,
        planar=runner.planar_configuration if runner.samples_per_pixel > 1 else 0,
        allocated=runner.bits_allocated,
        stored=stored,
        signed=runner.pixel_representation,
    )
    with _lock:
        pixels = _ask(json.dumps(request).encode() + b"\n" + source)
    if not pixels:
        raise ValueError("GDCM cannot decode the frame")
    return pixels


def _ask(message: bytes) -> bytes:
    """The worker's answer, empty when it died or took too long: the next question then gets a new worker."""
    global _worker
    if _worker is None or _worker[0] != os.getpid() or _worker[1].poll() is not None:
        command = [sys.executable, "-I", gdcm_worker.__file__]
        pipe = subprocess.PIPE
        _worker = (
            os.getpid(),
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL),
        )
    process = _worker[1]
    clock = threading.Timer(_SECONDS, process.kill)
    clock.start()
    try:
        pixels = _exchange(process, message)
    finally:
        clock.cancel()
    if not pixels:
        process.kill()
        process.communicate()
        _worker = None
    return pixels


def _exchange(process: subprocess.Popen[bytes], message: bytes) -> bytes:
    if process.stdin is None or process.stdout is None:
        return b""
    try:
        process.stdin.write(message)
        process.stdin.flush()
        size = int(process.stdout.readline() or b"0")
        pixels = process.stdout.read(size)
    except (OSError, ValueError):
        return b""
    return pixels if len(pixels) == size else b""


def register() -> None:
    """Make this module known to pydicom under the name `PLUGIN`; doing so again changes nothing."""
    for syntax in SYNTAXES:
        decoder = get_decoder(syntax)
        if PLUGIN not in decoder.available_plugins:
            decoder.add_plugin(PLUGIN, (__name__, "decode_frame"))
