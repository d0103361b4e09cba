"""Masks to files and back, on the image's grid and on none else."""

import itertools
import stat
from pathlib import Path

import itk
import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from medsa.data.dicom import volume_from_datasets
from medsa.data.labels import load_labels
from medsa.data.read import read_volume
from medsa.data.read_label import on_grid, read_label
from medsa.data.volume import Volume
from medsa.data.write import nrrd_bytes, write_atomically, write_image, write_mask
from medsa.errors import BadInputError, LabelMismatchError, NotFoundError, UnreadableImageError

pytestmark = pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # itk's own

TURNS = [
    np.diag(signs) @ np.eye(3)[list(axes)]
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@pytest.fixture(scope="module")
def volume() -> Volume:
    """An oblique volume of 6 x 5 x 4 voxels."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([0.7, 0.8, 2.5]), [11, -22, 33]
    return Volume(np.zeros((6, 5, 4), np.int16, order="F"), affine, "MR", "case")


@pytest.fixture(scope="module")
def mask(volume) -> np.ndarray:
    return np.asfortranarray(np.random.default_rng(2).integers(0, 3, volume.shape, np.uint8))


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd"])
def test_what_is_written_is_read_back_equal(tmp_path, volume, mask, ending):
    write_mask(tmp_path / f"m.{ending}", mask, volume)
    assert np.array_equal(read_label(tmp_path / f"m.{ending}", volume), mask)


def test_a_dicom_seg_is_written_and_read_by_its_ending(tmp_path, draw_series, noise):
    volume = volume_from_datasets(draw_series(noise(4, 5, 6)))
    labels = load_labels("abdomen")
    mask = np.asfortranarray(np.random.default_rng(2).integers(0, 4, volume.shape, np.uint8))
    write_mask(tmp_path / "m.dcm", mask, volume, labels)
    assert pydicom.dcmread(tmp_path / "m.dcm").Modality == "SEG"
    assert np.array_equal(read_label(tmp_path / "m.dcm", volume, labels), mask)


def test_itk_sees_an_nrrd_where_the_volume_is(tmp_path, volume, mask):
    (tmp_path / "m.nrrd").write_bytes(nrrd_bytes(mask, volume))
    image = itk.imread(str(tmp_path / "m.nrrd"))
    assert np.array_equal(itk.array_from_image(image).T, mask)
    for index in [(0, 0, 0), (5, 4, 3), (2, 1, 3)]:
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        assert np.allclose(lps * [-1, -1, 1], (volume.affine @ [*index, 1])[:3])


def test_an_nrrd_is_raw_uint8_in_lps_and_takes_bool(volume, mask, tmp_path):
    data = nrrd_bytes(mask > 0, volume)
    assert data.endswith((mask > 0).tobytes(order="F"))
    (tmp_path / "m.nrrd").write_bytes(data)
    values, header = nrrd.read(str(tmp_path / "m.nrrd"))
    assert np.array_equal(values, mask > 0)
    assert (header["type"], header["encoding"], header["space"]) == (
        "uint8",
        "raw",
        "left-posterior-superior",
    )


@pytest.mark.parametrize("turn", TURNS)
def test_the_same_grid_is_recognised_in_any_axis_order_and_direction(volume, mask, turn):
    axes, signs = np.abs(turn).argmax(axis=0), turn.sum(axis=0)
    turned = mask.transpose(axes)
    to_volume = np.eye(4)
    to_volume[:3, :3] = np.eye(3)[:, axes]
    for axis in np.flatnonzero(signs < 0):
        turned = np.flip(turned, axis)
        to_volume[:3, 3] += to_volume[:3, axis] * (turned.shape[axis] - 1)
        to_volume[:3, axis] *= -1
    assert np.array_equal(on_grid(turned, volume.affine @ to_volume, volume), mask)


@given(
    shift=st.tuples(*[st.floats(-0.05, 0.05)] * 3),
    where=st.sampled_from(["nii", "nrrd"]),
)
@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rounded_headers_are_the_same_grid(tmp_path, volume, mask, shift, where):
    affine = volume.affine.copy()
    affine[:3, 3] += np.array(shift) * 0.7
    write_mask(tmp_path / f"m.{where}", mask, Volume(volume.voxels, affine))
    assert np.array_equal(read_label(tmp_path / f"m.{where}", volume), mask)


def _moved(affine: np.ndarray, millimetres: float) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += millimetres
    return moved


@pytest.mark.parametrize(
    ("shape", "change", "reason"),
    [
        ((6, 5, 3), lambda a: a, "covers 6 x 5 x 3"),
        ((5, 6, 4), lambda a: a, "covers 5 x 6 x 4"),
        ((6, 5, 4), lambda a: _moved(a, 1.0), "another grid"),
        ((6, 5, 4), lambda a: a @ np.diag([1, 1, 1.2, 1]), "another grid"),
        ((6, 5, 4), lambda a: a @ np.diag([2, 1, 1, 1]), "another grid"),
        ((6, 5, 4), lambda _: np.eye(4), "another grid"),
    ],
)
def test_other_grids_are_never_resampled(tmp_path, volume, shape, change, reason):
    nibabel.Nifti1Image(np.ones(shape, np.uint8), change(volume.affine)).to_filename(tmp_path / "m.nii")
    with pytest.raises(LabelMismatchError, match=rf"m\.nii: .*{reason}"):
        read_label(tmp_path / "m.nii", volume)


def test_a_seg_nrrd_may_cover_a_part_of_the_image(tmp_path, volume):
    part = _moved(volume.affine, 0)
    part[:3, 3] = (volume.affine @ [2, 1, 1, 1])[:3]
    (tmp_path / "m.seg.nrrd").write_bytes(
        nrrd_bytes(np.ones((2, 3, 2), np.uint8), Volume(volume.voxels, part))
    )
    read = read_label(tmp_path / "m.seg.nrrd", volume)
    assert read.sum() == 12
    assert read[2:4, 1:4, 1:3].all()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((6, 5, 4), np.uint8), "empty"),
        (np.full((6, 5, 4), 300, np.int16), "0 to 255"),
        (np.full((6, 5, 4), 0.5), "whole"),
    ],
)
def test_labels_that_are_no_labels_are_refused(tmp_path, volume, values, reason):
    nibabel.Nifti1Image(values, volume.affine).to_filename(tmp_path / "m.nii.gz")
    with pytest.raises(LabelMismatchError, match=reason):
        read_label(tmp_path / "m.nii.gz", volume)


@pytest.mark.parametrize("name", ["m.nii", "m.nii.gz", "m.nrrd", "m.png", "m.dcm", "m.txt"])
def test_damaged_label_files_are_refused_and_missing_ones_missed(tmp_path, volume, name):
    with pytest.raises(NotFoundError, match="no label file"):
        read_label(tmp_path / name, volume)
    (tmp_path / name).write_bytes(b"no label at all" * 40)
    with pytest.raises(UnreadableImageError, match=name):
        read_label(tmp_path / name, volume)


def test_a_png_of_one_label_is_black_and_white_and_of_several_keeps_the_values(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "image.png")
    image = read_volume(tmp_path / "image.png")
    one = np.zeros((6, 4, 1), np.uint8)
    one[1:3, 2] = 1
    write_mask(tmp_path / "one.png", one, image)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "one.png")))) == {0, 255}
    assert np.array_equal(read_label(tmp_path / "one.png", image), one)
    several = one.copy()
    several[4, 0] = 5
    write_mask(tmp_path / "several.png", several, image)
    assert np.array_equal(read_label(tmp_path / "several.png", image), several)
    assert (
        Image.open(tmp_path / "several.png").convert("RGB").getpixel((4, 0))
        == load_labels().by_index(5).color
    )


@pytest.mark.parametrize("value", [1, 5, 255])
def test_a_png_of_values_keeps_the_value_of_a_single_label(tmp_path, value):
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "image.png")
    image = read_volume(tmp_path / "image.png")
    mask = np.zeros((6, 4, 1), np.uint8)
    mask[1:3, 2] = value
    white = load_labels().labels[-1].model_copy(update={"index": 255, "color": (64, 196, 255)})
    labels = load_labels().model_copy(update={"labels": (*load_labels().labels[:-1], white)})
    write_mask(tmp_path / "m.png", mask, image, labels, values=True)
    assert np.array_equal(read_label(tmp_path / "m.png", image, labels), mask)


def test_white_means_one_or_what_the_reader_knows(tmp_path):
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "image.png")
    image = read_volume(tmp_path / "image.png")
    drawn = Image.fromarray(np.pad(np.full((2, 2), 255, np.uint8), ((1, 1), (2, 2))))
    for mode in ("L", "P", "1"):
        drawn.convert(mode).save(tmp_path / "m.png")
        assert set(np.unique(read_label(tmp_path / "m.png", image))) == {0, 1}
    drawn.save(tmp_path / "m.png")
    assert set(np.unique(read_label(tmp_path / "m.png", image, white=5))) == {0, 5}


def test_a_label_in_colour_is_refused(tmp_path, volume):
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(LabelMismatchError, match="in colour"):
        read_label(tmp_path / "m.png", volume)


def test_a_png_of_a_volume_and_unknown_endings_are_refused(tmp_path, volume, mask):
    with pytest.raises(BadInputError, match="one slice"):
        write_mask(tmp_path / "m.png", mask, volume)
    with pytest.raises(BadInputError, match=r"\.nii\.gz, \.nii"):
        write_mask(tmp_path / "m.mha", mask, volume)
    with pytest.raises(LabelMismatchError, match="no DICOM series"):
        write_mask(tmp_path / "m.dcm", mask, volume)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 3)])
def test_an_image_is_written_and_read_back_equal_in_grey_and_colour(tmp_path, volume, shape):
    voxels = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
    write_image(tmp_path / "image.nii.gz", Volume(voxels, volume.affine))
    back = read_volume(tmp_path / "image.nii.gz")
    assert np.array_equal(back.voxels, voxels)
    assert np.allclose(back.affine, volume.affine, atol=1e-5)


def test_files_are_private_and_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", b"first")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
