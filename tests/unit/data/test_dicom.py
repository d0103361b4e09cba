"""DICOM series to volumes: order, geometry, values, and what is refused."""

import copy
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

import medsa.data.limits
from medsa.data.dicom import frame_order, volume_from_datasets
from medsa.errors import TooLargeError, UnreadableImageError


def test_slices_are_sorted_along_the_normal_and_axes_are_column_row_slice(draw_series, noise):
    voxels = noise(5, 4, 3)
    slices = draw_series(voxels)
    volume = volume_from_datasets([slices[k] for k in (3, 0, 4, 1, 2)])
    assert volume.shape == (3, 4, 5)
    assert np.array_equal(volume.voxels, voxels.T)
    assert volume.voxels.flags.f_contiguous
    assert volume.voxels.dtype == np.int16
    assert [header.SOPInstanceUID for header in volume.headers] == [ds.SOPInstanceUID for ds in slices]
    assert volume.uid == "1.2.3.4"
    assert volume.modality == "CT"


@given(order=st.permutations(range(6)))
def test_the_order_of_arrival_does_not_matter(draw_series, noise, order):
    slices = draw_series(noise(6, 2, 2))
    first, second = volume_from_datasets(slices), volume_from_datasets([slices[k] for k in order])
    assert np.array_equal(first.voxels, second.voxels)
    assert np.array_equal(first.affine, second.affine)


def test_the_affine_takes_voxels_to_ras_millimetres(draw_series, noise):
    volume = volume_from_datasets(draw_series(noise(3, 4, 5)))
    assert np.allclose(volume.spacing, (0.7, 0.5, 2.0))
    assert np.allclose(volume.affine @ [1, 2, 2, 1], [-(10 + 0.7), -(20 + 1.0), 34, 1])


def test_a_coronal_series_ascends_along_its_normal(draw_series, noise):
    coronal = [1, 0, 0, 0, 0, -1]
    slices = draw_series(noise(3, 4, 5), ImageOrientationPatient=coronal)
    for k, ds in enumerate(slices):
        ds.ImagePositionPatient = [0, -5.0 * k, 0]
    volume = volume_from_datasets(slices)
    assert [header.ImagePositionPatient[1] for header in volume.headers] == [-10, -5, 0]
    assert np.allclose(volume.affine[:3, 2], [0, -5, 0])


def test_gantry_tilt_gives_a_sheared_affine(draw_series, noise):
    tilted = [1, 0, 0, 0, np.cos(0.2), -np.sin(0.2)]
    volume = volume_from_datasets(draw_series(noise(4, 3, 3), ImageOrientationPatient=tilted))
    assert np.allclose(volume.affine[:3, 2], [0, 0, 2])
    assert abs(volume.affine[:3, 1] @ volume.affine[:3, 2]) > 0.1


def test_integer_rescale_keeps_int16_and_others_give_float32(draw_series, noise):
    stored = noise(2, 3, 3, low=0, high=3000).astype(np.uint16)
    hounsfield = volume_from_datasets(draw_series(stored, RescaleSlope="1", RescaleIntercept="-1024"))
    assert hounsfield.voxels.dtype == np.int16
    assert np.array_equal(hounsfield.voxels, stored.T.astype(int) - 1024)
    suv = volume_from_datasets(draw_series(stored, RescaleSlope="0.25", RescaleIntercept="1.5"))
    assert suv.voxels.dtype == np.float32
    assert np.allclose(suv.voxels, stored.T * 0.25 + 1.5)


def test_values_beyond_int16_become_float32_and_stay_exact(draw_series):
    stored = np.array([[[0, 65535]]], np.uint16)
    assert volume_from_datasets(draw_series(stored)).voxels.ravel().tolist() == [0, 65535]
    scaled = volume_from_datasets(draw_series(stored, RescaleSlope="2", RescaleIntercept="-3"))
    assert scaled.voxels.ravel().tolist() == [-3, 131067]


def test_each_slice_has_its_own_rescale(draw_series):
    slices = draw_series(np.ones((3, 2, 2), np.int16))
    for k, ds in enumerate(slices):
        ds.RescaleSlope, ds.RescaleIntercept = str(k + 1), "10"
    assert volume_from_datasets(slices).voxels[0, 0].tolist() == [11, 12, 13]


def test_signed_and_unsigned_slices_of_one_series_meet(draw_series):
    slices = [*draw_series(np.full((1, 2, 2), -5, np.int16))]
    slices += draw_series(np.full((1, 2, 2), 60000, np.uint16), origin=(10, 20, 32))
    assert volume_from_datasets(slices).voxels[0, 0].tolist() == [-5, 60000]


def test_unused_high_bits_are_not_values(draw_series):
    stored = np.array([[[0xF123, 0x0FFF]]], np.uint16)
    unsigned = volume_from_datasets(draw_series(stored, BitsStored=12, HighBit=11))
    assert unsigned.voxels.ravel().tolist() == [0x123, 0xFFF]
    signed = volume_from_datasets(draw_series(stored.view(np.int16), BitsStored=12, HighBit=11))
    assert signed.voxels.ravel().tolist() == [0x123, -1]
    shifted = volume_from_datasets(draw_series(np.array([[[0x1230]]], np.uint16), BitsStored=12, HighBit=15))
    assert shifted.voxels.ravel().tolist() == [0x123]


def test_monochrome1_is_turned_round(draw_series):
    stored = np.array([[[0, 4095]]], np.uint16)
    volume = volume_from_datasets(
        draw_series(stored, BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1")
    )
    assert volume.voxels.ravel().tolist() == [4095, 0]
    signed = volume_from_datasets(
        draw_series(stored.astype(np.int16), PhotometricInterpretation="MONOCHROME1")
    )
    assert signed.voxels.ravel().tolist() == [-1, -4096]


def test_a_modality_lut_is_applied(draw_series):
    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType, lut.LUTData = [3, 0, 16], "US", [100, 200, 300]
    slices = draw_series(np.array([[[0, 1, 2]]], np.uint16), ModalityLUTSequence=[lut])
    slices[0]["ModalityLUTSequence"].value[0]["LUTDescriptor"].VR = "US"
    slices[0]["ModalityLUTSequence"].value[0]["LUTData"].VR = "US"
    assert volume_from_datasets(slices).voxels.ravel().tolist() == [100, 200, 300]


def test_frames_are_sorted_by_position_and_each_has_its_own_rescale(draw_enhanced):
    voxels = np.array([[[5, 6]], [[7, 8]], [[9, 10]]], np.int16)
    ds = draw_enhanced(voxels, [(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    volume = volume_from_datasets([ds])
    assert frame_order(volume.headers[0]) == [1, 2, 0]
    assert volume.voxels[0, 0].tolist() == [7 * 2 - 1, 9 * 3 - 2, 5]
    assert np.allclose(volume.spacing, (0.7, 0.5, 2.0))
    assert len(volume.headers) == 1


def test_a_film_without_positions_is_stacked_in_its_order(draw_image, noise):
    voxels = noise(4, 3, 2)
    volume = volume_from_datasets([draw_image(voxels, SliceThickness=3)])
    assert np.array_equal(volume.voxels, voxels.T)
    assert volume.spacing[2] == 3


@pytest.mark.parametrize(
    ("modality", "spacing", "step"), [("NM", 4, 4), ("NM", -4, -4), ("PT", -4, 4), ("NM", None, 3)]
)
def test_nuclear_medicine_is_stacked_to_the_side_that_the_sign_of_its_spacing_names(
    draw_image, noise, modality, spacing, step
):
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [10, 20, 30], [1, 0, 0, 0, 1, 0]
    voxels = noise(5, 4, 2)
    tomogram = draw_image(
        voxels,
        Modality=modality,
        PixelSpacing=[2, 2],
        SliceThickness=3,
        SpacingBetweenSlices=spacing,
        DetectorInformationSequence=[detector],
    )
    volume = volume_from_datasets([tomogram])
    assert np.array_equal(volume.voxels, voxels.T)
    assert np.allclose(volume.affine @ [0, 0, 2, 1], [-10, -20, 30 + 2 * step, 1])
    assert np.allclose(volume.spacing, (2, 2, abs(step)))


def test_a_single_frame_of_nuclear_medicine_has_no_side(draw_series, noise):
    slices = draw_series(noise(3, 4, 5), Modality="NM", SpacingBetweenSlices=-2)
    assert volume_from_datasets(slices[:1]).affine[2, 2] == volume_from_datasets(slices).affine[2, 2] == 2


def test_colour_is_kept_as_rgb(draw_image):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
    volume = volume_from_datasets([draw_image(pixels, Modality="XC")])
    assert volume.is_rgb
    assert volume.shape == (4, 3, 1)
    assert np.array_equal(volume.voxels[:, :, 0], pixels.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("fields", "spacing"),
    [
        ({}, (1, 1, 1)),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.1, 0.2, 1)),
        ({"PixelAspectRatio": [2, 1]}, (1, 2, 1)),
        ({"PixelSpacing": [0.4, 0.3], "SliceThickness": 5}, (0.3, 0.4, 5)),
    ],
)
def test_a_single_image_without_geometry_gets_the_best_spacing_there_is(draw_image, fields, spacing):
    volume = volume_from_datasets([draw_image(np.zeros((2, 3), np.uint16), Modality="CR", **fields)])
    assert np.allclose(volume.spacing, spacing)


def test_an_ultrasound_region_gives_the_spacing(draw_image):
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    volume = volume_from_datasets(
        [draw_image(np.zeros((2, 3), np.uint8), SequenceOfUltrasoundRegions=[region])]
    )
    assert np.allclose(volume.spacing, (0.2, 0.3, 1))
    assert volume.voxels.dtype == np.uint8


def test_an_object_sent_twice_counts_once(draw_series, noise):
    slices = draw_series(noise(3, 2, 2))
    assert volume_from_datasets([*slices, copy.deepcopy(slices[1])]).shape == (2, 2, 3)


def test_headers_hold_no_pixels_and_the_datasets_are_left_alone(draw_series, noise):
    slices = draw_series(noise(2, 2, 2))
    volume = volume_from_datasets(slices)
    assert not any("PixelData" in header for header in volume.headers)
    assert all("PixelData" in ds for ds in slices)
    assert volume.headers[0].PatientName == "Drawn^Nobody"


def test_positions_written_with_few_digits_are_even_enough(draw_series, noise):
    slices = draw_series(noise(40, 2, 2), spacing=(1.3333333, 1, 1))
    for ds in slices:
        ds.ImagePositionPatient = [round(float(x), 2) for x in ds.ImagePositionPatient]
    assert np.allclose(volume_from_datasets(slices).spacing[2], 1.3333, atol=1e-3)


def _move(slices, k, **fields):
    for name, value in fields.items():
        setattr(slices[k], name, value)


REFUSED = {
    "several phases": (
        lambda s: _move(s, 3, ImagePositionPatient=s[2].ImagePositionPatient),
        "share 4 positions",
    ),
    "a missing slice": (lambda s: s.pop(2), "unevenly spaced"),
    "a shifted slice": (lambda s: _move(s, 2, ImagePositionPatient=[30, 20, 34]), "unevenly spaced"),
    "a turned slice": (
        lambda s: _move(s, 1, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        "another orientation",
    ),
    "another size": (lambda s: _move(s, 1, Rows=2), "different sizes"),
    "another pixel spacing": (lambda s: _move(s, 1, PixelSpacing=[3, 3]), "different pixel spacings"),
    "another series": (lambda s: _move(s, 1, SeriesInstanceUID="1.9"), "2 series"),
    "another frame of reference": (lambda s: _move(s, 1, FrameOfReferenceUID="1.9"), "frames of reference"),
    "no position": (lambda s: s[1].__delattr__("ImagePositionPatient"), "do not say where they lie"),
    "a position of two numbers": (lambda s: _move(s, 1, ImagePositionPatient=[1, 2]), "3 numbers"),
    "an orientation of zeros": (
        lambda s: [_move(s, k, ImageOrientationPatient=[0] * 6) for k in range(5)],
        "unit",
    ),
    "zero spacing": (lambda s: [_move(s, k, PixelSpacing=[0, 0]) for k in range(5)], "not positive"),
    "zero slope": (lambda s: _move(s, 1, RescaleSlope=0), "RescaleSlope is 0"),
    "cut off pixels": (lambda s: _move(s, 1, PixelData=s[1].PixelData[:6]), "cut off"),
    "no pixels": (lambda s: s[1].__delattr__("PixelData"), "no pixel data"),
    "more frames than pixels": (lambda s: _move(s, 0, NumberOfFrames=10**7), "several frames"),
    "no rows": (lambda s: [_move(s, k, Rows=0) for k in range(5)], "no rows"),
    "a report": (lambda s: s[1].__delattr__("Rows"), "not an image"),
    "a segmentation": (lambda s: _move(s, 1, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "SEG"),
    "colour among grey": (lambda s: _move(s, 1, PhotometricInterpretation="RGB", SamplesPerPixel=3), "mixes"),
    "an unknown meaning of pixels": (lambda s: _move(s, 0, PhotometricInterpretation="HSV"), "HSV"),
    "nothing at all": (lambda s: s.clear(), "no object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(draw_series, noise, case):
    slices = draw_series(noise(5, 4, 4))
    change, reason = REFUSED[case]
    change(slices)
    with pytest.raises(UnreadableImageError, match=reason):
        volume_from_datasets(slices)


def test_several_films_in_one_series_are_refused(draw_image, noise):
    with pytest.raises(UnreadableImageError, match="2 with several frames"):
        volume_from_datasets([draw_image(noise(3, 2, 2)), draw_image(noise(3, 2, 2))])


def test_a_header_for_fewer_frames_is_refused(draw_enhanced, noise):
    with pytest.raises(UnreadableImageError, match="describes 2"):
        volume_from_datasets([draw_enhanced(noise(3, 2, 2), [(0, 0, 0), (0, 0, 1)])])


def test_a_header_that_breaks_the_standard_is_refused_without_quoting_it(draw_series, noise):
    slices = draw_series(noise(2, 2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slices[0].add_new("NumberOfFrames", "LO", "Doe^Jane")
    with pytest.raises(UnreadableImageError, match="breaks the standard") as error:
        volume_from_datasets(slices)
    assert "Doe" not in str(error.value)


@pytest.mark.parametrize("frames", [3, 10**6, 2**31 - 1])
def test_a_header_that_announces_frames_that_are_not_there_is_refused_at_once(draw_image, noise, frames):
    with pytest.raises((UnreadableImageError, TooLargeError)):
        volume_from_datasets([draw_image(noise(1, 4, 4), NumberOfFrames=frames)])


def test_frames_of_single_bits_are_cut_out_wherever_they_start(draw_image):
    planes = np.random.default_rng(0).integers(0, 2, (5, 3, 7), np.uint8)
    ds = draw_image(planes, BitsAllocated=1, BitsStored=1, HighBit=0)
    ds.PixelData = np.packbits(planes.ravel(), bitorder="little").tobytes() + b"\0"
    assert np.array_equal(volume_from_datasets([ds]).voxels, planes.T)


def test_too_large_is_said_before_anything_is_allocated(draw_series, noise, monkeypatch):
    slices = draw_series(noise(2, 2, 2))
    for ds in slices:
        ds.Rows = ds.Columns = 60000
    monkeypatch.setattr(medsa.data.limits, "available_memory", lambda: 8 * 2**30)
    with pytest.raises(TooLargeError, match="60000 x 60000 x 2"):
        volume_from_datasets(slices)
