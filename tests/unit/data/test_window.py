"""Intensity windows: what is chosen for which image, and what it does to values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from medsa.data.volume import Volume
from medsa.data.window import CT_WINDOWS, WINDOW_NAMES, Window, apply_window, check_window, choose_window
from medsa.errors import BadInputError


def volume(voxels, modality="", headers=()) -> Volume:
    return Volume(np.asfortranarray(voxels), np.eye(4), modality, headers=headers)


@pytest.fixture
def mr() -> Volume:
    voxels = np.zeros((40, 40, 40), np.int16)
    voxels[10:, :, :] = np.random.default_rng(0).normal(500, 100, (30, 40, 40)).clip(1)
    return volume(voxels, "MR")


def test_ct_gets_soft_tissue_and_says_so(noise):
    window = choose_window(volume(noise(4, 4, 4), "CT"))
    assert (window.low, window.high) == (-160, 240)
    assert str(window) == "soft-tissue (-160,240)"


def test_mr_gets_percentiles_of_what_is_not_zero(mr):
    window, values = choose_window(mr), mr.voxels[mr.voxels > 0]
    assert window.name == "mr"
    assert window.low == pytest.approx(np.percentile(values, 0.5), rel=0.02)
    assert window.high == pytest.approx(np.percentile(values, 99.5), rel=0.02)


def test_a_file_that_looks_like_hounsfield_units_gets_soft_tissue():
    voxels = np.full((20, 20, 20), -1000, np.int16)
    voxels[5:15, 5:15] = 60
    assert choose_window(volume(voxels)).name == "soft-tissue"


def test_8_bit_pictures_keep_their_range_but_measured_volumes_of_8_bits_do_not():
    pixels = np.arange(100, 200, dtype=np.uint8).reshape(10, 10, 1)
    film = np.repeat(pixels, 3, axis=2)
    for picture in (volume(pixels), volume(pixels, "US"), volume(film, "US")):
        assert choose_window(picture) == Window(0, 255, "full")
    for measured in (volume(pixels, "MR"), volume(film)):
        assert choose_window(measured).name == "mr"


@pytest.mark.parametrize("spec", WINDOW_NAMES)
def test_colour_is_left_as_it_is_whatever_is_asked(spec):
    rgb = volume(np.random.default_rng(0).integers(0, 256, (3, 3, 1, 3), np.uint8), "XC")
    window = choose_window(rgb, spec)
    assert window.name == "rgb"
    assert np.array_equal(apply_window(rgb.voxels, window), rgb.voxels)


@pytest.mark.parametrize("name", CT_WINDOWS)
def test_every_named_window_can_be_asked_for(mr, name):
    assert choose_window(mr, name) == Window(*CT_WINDOWS[name], name)


def test_numbers_full_range_and_the_headers_own_window(mr):
    assert choose_window(mr, "-100.5,300") == Window(-100.5, 300)
    assert choose_window(mr, "full") == Window(0, mr.voxels.max(), "full")
    header = Dataset()
    header.WindowCenter, header.WindowWidth = [40, 60], [400, 100]
    assert choose_window(volume(mr.voxels, "MR", (header,)), "dicom") == Window(-160, 240, "dicom")


@pytest.mark.parametrize("value", [0, 5, -1000])
def test_an_image_of_one_value_still_has_a_window(value):
    for spec in ("mr", "full", "auto"):
        window = choose_window(volume(np.full((3, 3, 3), value, np.int16), "MR"), spec)
        assert window.low < window.high


@pytest.mark.parametrize("spec", ["", "liver2", "1,2,3", "300,-100", "nan,3", "1,inf", "a,b", "5,5"])
def test_unknown_and_impossible_windows_are_refused(mr, spec):
    with pytest.raises(BadInputError):
        check_window(spec)
    with pytest.raises(BadInputError):
        choose_window(mr, spec)


def test_windows_that_the_image_cannot_have_are_refused(mr):
    with pytest.raises(BadInputError, match="holds no window"):
        choose_window(mr, "dicom")
    with pytest.raises(BadInputError, match="colour"):
        choose_window(mr, "rgb")


def test_the_unknown_are_told_the_known(mr):
    with pytest.raises(BadInputError, match=r"soft-tissue.*lung.*LOW,HIGH"):
        choose_window(mr, "lungs")


@given(
    low=st.floats(-2000, 2000),
    width=st.floats(0.5, 5000),
    values=st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=20),
)
def test_windowed_values_rise_with_the_values_from_0_to_255(low, width, values):
    pixels = np.sort(np.array(values, np.float32))
    grey = apply_window(pixels, Window(low, low + width))
    assert grey.dtype == np.float32
    assert grey.min() >= 0
    assert grey.max() <= 255
    assert (np.diff(grey) >= 0).all()


def test_a_window_is_a_key(mr):
    assert len({choose_window(mr), choose_window(mr), choose_window(mr, "full")}) == 2
    with pytest.raises(BadInputError):
        Window(3, 3)
