"""Odd and broken DICOM as it is found in the world: each case loads right or is refused for its reason."""

import numpy as np
import pydicom
import pytest
from scipy.ndimage import binary_erosion

from medsa.data.labels import load_labels
from medsa.data.read import read_volume
from medsa.data.read_label import read_label
from medsa.data.seg import read_seg, write_seg
from medsa.errors import LabelMismatchError, UnreadableImageError

CASES = {
    "cr_monochrome1_j2k_real": ((1760, 1760, 1), (1, 1, 1)),
    "ct_axial_j2k_20slices": ((512, 512, 20), (0.9766, 0.9766, 2)),
    "ct_gantry_tilt_small": ((512, 512, 4), (0.418, 0.418, 5)),
    "ct_multiframe_tiny": ((23, 38, 3), (0.7, 0.7, 2.5)),
    "ct_oriented_missing_slicelocation": ((100, 50, 3), (2.5, 3.5, 4.5)),
    "ct_rtstruct_2slices": ((512, 512, 2), (0.4883, 0.4883, 5)),
    "ct_rtstruct_invalid_refs": ((512, 512, 2), (0.4883, 0.4883, 5)),
    "ct_seg_liver_3slices": ((512, 512, 3), (0.8105, 0.8105, 1)),
    "ct_seg_single_frame_128": ((128, 128, 1), (0.6615, 0.6615, 5)),
    "ct_seg_tiny_23x38x3": ((23, 38, 3), (0.7, 0.7, 2.5)),
    "ct_single_j2k_real": ((512, 512, 1), (0.4785, 0.4785, 20)),
    "mr_enhanced_bigendian_real": ((64, 64, 10), (1, 1, 1.2)),
    "mr_enhanced_philips": ((256, 256, 8), (1, 1, 1.2)),
    "mr_enhanced_rle_real": ((64, 64, 10), (1, 1, 1.2)),
    "mr_hippocrop_study1": ((35, 51, 32), (1, 1, 1)),
    "mr_hippocrop_study3": ((34, 50, 40), (1, 1, 1)),
    "mr_j2k": ((256, 256, 4), (1, 1, 1)),
    "mr_jpeg_lossless": ((256, 256, 4), (1, 1, 1)),
    "mr_nonisotropic_nonsquare": ((64, 28, 4), (6.4, 4, 0.5)),
    "mr_t1post_22slices": ((280, 320, 22), (0.6875, 0.6875, 6.5)),
    "mr_two_slices_only": ((256, 256, 2), (1, 1, 1)),
}
NO_SEG = {
    "ct_axial_j2k_20slices": "StudyInstanceUID",
    "ct_oriented_missing_slicelocation": "different studies",
    "mr_enhanced_bigendian_real": "do not say where",
    "mr_enhanced_rle_real": "do not say where",
}


@pytest.fixture(scope="module")
def images(shared_data):
    return shared_data / "dicom_cases" / "images"


@pytest.mark.parametrize("case", CASES)
def test_the_case_loads_with_its_size_and_spacing(images, case):
    volume = read_volume(images / case)
    shape, spacing = CASES[case]
    assert volume.shape == shape
    assert np.allclose(volume.spacing, spacing, atol=1e-3)
    assert volume.voxels.flags.f_contiguous
    assert len(volume.headers) in (1, shape[2])


@pytest.mark.parametrize("case", CASES)
def test_a_seg_of_the_case_comes_back_equal_or_the_reason_is_said(images, case):
    volume, labels = read_volume(images / case), load_labels()
    mask = np.zeros(volume.shape, np.uint8)
    mask[3:9, 4:12, 0], mask[10:13, 1:5, -1] = 5, 8
    if case in NO_SEG:
        with pytest.raises(LabelMismatchError, match=NO_SEG[case]):
            write_seg(mask, volume, labels)
    else:
        assert np.array_equal(read_seg(write_seg(mask, volume, labels), volume, labels)[0], mask)


def test_every_case_is_tried(images):
    assert {path.name for path in images.iterdir()} == {*CASES, "mr_mixed_orientation"}


def test_two_orientations_in_one_series_are_refused(images):
    with pytest.raises(UnreadableImageError, match="different pixel spacings"):
        read_volume(images / "mr_mixed_orientation")


def test_the_same_image_in_two_encodings_is_the_same(images):
    one, other = (read_volume(images / case) for case in ("mr_j2k", "mr_jpeg_lossless"))
    assert np.array_equal(one.voxels, other.voxels)
    one, other = (
        read_volume(images / case) for case in ("mr_enhanced_rle_real", "mr_enhanced_bigendian_real")
    )
    assert np.array_equal(one.voxels, other.voxels)


def test_a_radiograph_in_monochrome1_shows_air_dark(images):
    voxels = read_volume(images / "cr_monochrome1_j2k_real").voxels
    stored = pydicom.dcmread(images / "cr_monochrome1_j2k_real" / "RG3_J2KI.dcm").pixel_array
    assert np.array_equal(voxels[:, :, 0].T, 1023 - stored)


def test_a_gantry_tilt_is_kept_as_shear(images):
    step, column = (read_volume(images / "ct_gantry_tilt_small").affine[:3, axis] for axis in (2, 1))
    assert np.allclose(step, [0, 0, 5])
    assert abs(column @ step) / (5 * 0.418) == pytest.approx(0.242, abs=0.01)


def test_a_nifti_label_made_from_a_series_lies_on_its_grid(images):
    volume = read_volume(images / "ct_axial_j2k_20slices")
    mask = read_label(images.parent / "labels" / "ct_axial_j2k_20slices.nii.gz", volume)
    inside = binary_erosion(mask > 0, iterations=2)
    assert np.median(volume.voxels[inside]) > -200
    assert (volume.voxels[mask == 0] < -900).mean() > 2 * (volume.voxels[mask > 0] < -900).mean()


@pytest.mark.parametrize(
    ("case", "file", "voxels", "names"),
    [
        ("ct_seg_liver_3slices", "liver.dcm", [36233, 35645, 35220], {1: "Liver"}),
        ("ct_seg_tiny_23x38x3", "label.seg", [4, 314, 4], {1: "Liver"}),
        ("ct_multiframe_tiny", "../ct_seg_tiny_23x38x3/label.seg", [4, 314, 4], {1: "Liver"}),
        ("ct_seg_single_frame_128", "seg_image_ct_binary_single_frame.dcm", [1832], {1: "first segment"}),
    ],
)
def test_segs_of_other_makers_are_read_on_the_full_grid(images, case, file, voxels, names):
    mask, found = read_seg(pydicom.dcmread(images / case / file), read_volume(images / case))
    assert mask.sum(axis=(0, 1)).tolist() == voxels
    assert found == names


def test_the_liver_lies_on_liver(images):
    volume = read_volume(images / "ct_seg_liver_3slices")
    mask, _ = read_seg(pydicom.dcmread(images / "ct_seg_liver_3slices" / "liver.dcm"), volume)
    assert 30 < np.median(volume.voxels[mask > 0]) < 180
    assert np.std(volume.voxels[mask > 0]) < 0.2 * np.std(volume.voxels)


def test_the_image_beside_a_structure_set_is_read_and_the_set_itself_refused(images):
    with pytest.raises(UnreadableImageError, match="RTSTRUCT"):
        read_volume(images / "ct_rtstruct_2slices" / "rt.dcm")
