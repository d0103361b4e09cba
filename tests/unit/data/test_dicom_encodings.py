"""DICOM's encodings of pixels: the same voxels from each, and what damage comes to."""

import contextlib
import signal
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames

from medsa.data import gdcm_decoder
from medsa.data.dicom import volume_from_datasets
from medsa.data.read import read_volume
from medsa.errors import UnreadableImageError

TWINS = {
    "JPEG-LS": ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
    "JPEG 2000": ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
    "RLE": ("MR_small_RLE.dcm", "MR_small.dcm"),
    "big endian": ("MR_small_bigendian.dcm", "MR_small.dcm"),
    "implicit VR": ("MR_small_implicit.dcm", "MR_small.dcm"),
    "padded": ("MR_small_padded.dcm", "MR_small.dcm"),
    "RGB RLE": ("SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm"),
    "JPEG lossless of colour": ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),
}


@pytest.mark.parametrize("case", TWINS)
def test_every_lossless_encoding_gives_the_same_voxels(case):
    one, other = (read_volume(Path(get_testdata_file(name))) for name in TWINS[case])
    assert np.array_equal(one.voxels, other.voxels)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100, 1)),
        ("SC_rgb_dcmtk_+eb+cy+np.dcm", (100, 100, 1)),
        ("SC_ybr_full_422_uncompressed.dcm", (100, 100, 1)),
        ("examples_palette.dcm", (800, 350, 1)),
        ("examples_ybr_color.dcm", (320, 240, 30)),
        ("examples_jpeg2k.dcm", (640, 480, 1)),
        ("SC_rgb_rle_32bit_2frame.dcm", (100, 100, 2)),
    ],
)
def test_colour_of_every_kind_becomes_rgb(name, shape):
    volume = read_volume(Path(get_testdata_file(name)))
    assert volume.is_rgb
    assert volume.shape == shape
    assert volume.voxels.dtype == np.uint8
    assert volume.voxels.max() > 100


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_jpeg_of_12_bits_decodes(name):
    volume = read_volume(Path(get_testdata_file(name)))
    assert volume.shape == (256, 1024, 1)
    assert volume.voxels.max() == 264


@pytest.mark.parametrize("name", ["image_dfl.dcm", "J2K_pixelrep_mismatch.dcm", "JPEGLSNearLossless_16.dcm"])
def test_rare_encodings_decode(name):
    assert np.ptp(read_volume(Path(get_testdata_file(name))).voxels) > 0


@pytest.mark.parametrize(
    "name",
    [
        "MR_truncated.dcm",
        "rtdose.dcm",
        "rtplan.dcm",
        "rtstruct.dcm",
        "test-SR.dcm",
        "liver_1frame.dcm",
        "badVR.dcm",
        "JPEG2000-embedded-sequence-delimiter.dcm",
        "no_meta.dcm",
        "waveform_ecg.dcm",
        "DICOMDIR-empty.dcm",
    ],
)
def test_damaged_files_and_other_objects_are_refused(name):
    with pytest.raises(UnreadableImageError, match=name):
        read_volume(Path(get_testdata_file(name)))


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "JPGExtended.dcm",
    ],
)
def test_damage_in_a_compressed_frame_ends_in_pixels_or_an_error_never_worse(name):
    ds = pydicom.dcmread(get_testdata_file(name))
    frame = next(generate_frames(ds.PixelData, number_of_frames=1))
    rng = np.random.default_rng(3)
    for cut in (1, 2, 2):
        damaged = bytearray(frame[: len(frame) // cut])
        for place in rng.integers(0, min(len(damaged), 400), 6):
            damaged[place] = rng.integers(256)
        ds.PixelData = encapsulate([bytes(damaged)])
        ds["PixelData"].is_undefined_length = True
        with contextlib.suppress(UnreadableImageError):
            volume_from_datasets([ds])
    ds.PixelData = encapsulate([frame])
    ds["PixelData"].is_undefined_length = True
    assert np.ptp(volume_from_datasets([ds]).voxels) > 0


def test_a_decoder_process_that_dies_or_hangs_is_replaced(monkeypatch):
    path = Path(get_testdata_file("SC_rgb_jpeg_gdcm.dcm"))
    whole = read_volume(path)
    for blow in (signal.SIGKILL, signal.SIGSTOP):
        gdcm_decoder._worker[1].send_signal(blow)
        with monkeypatch.context() as patch, contextlib.suppress(UnreadableImageError):
            patch.setattr(gdcm_decoder, "_SECONDS", 0.5)
            read_volume(path)
        assert np.array_equal(read_volume(path).voxels, whole.voxels)
