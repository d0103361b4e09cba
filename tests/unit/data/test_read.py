"""Files to volumes: NIfTI, NRRD, pictures, DICOM files and folders, and what is refused."""

import gzip
import struct
import zlib
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

import medsa.data.limits
from medsa.data.read import read_volume
from medsa.errors import NotFoundError, TooLargeError, UnreadableImageError

AFFINE = np.array([[-0.7, 0, 0, 10], [0, 0.5, 0, -20], [0, 0, 2, 30], [0, 0, 0, 1.0]])


def nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE, slope=None, inter=None) -> Path:
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_slope_inter(slope, inter)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_keeps_axes_affine_and_int16(tmp_path, noise, ending):
    values = noise(5, 4, 3)
    volume = read_volume(nifti(tmp_path / f"case.1{ending}", values))
    assert np.array_equal(volume.voxels, values)
    assert np.allclose(volume.affine, AFFINE)
    assert volume.uid == "case.1"
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.flags.f_contiguous


def test_nifti_rescale_is_exact_in_int16_or_float32(tmp_path):
    values = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    shifted = read_volume(nifti(tmp_path / "a.nii", values, slope=2, inter=-1024))
    assert shifted.voxels.dtype == np.int16
    assert np.array_equal(shifted.voxels, values.astype(int) * 2 - 1024)
    scaled = read_volume(nifti(tmp_path / "b.nii", values, slope=0.5, inter=0.25))
    assert scaled.voxels.dtype == np.float32
    assert np.allclose(scaled.voxels, values * 0.5 + 0.25)


@pytest.mark.parametrize("dtype", [">i2", "<u4", "<i8", "u1", "<f8", "i1"])
def test_nifti_of_every_number_type(tmp_path, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / "a.nii"
    nibabel.Nifti2Image(values, AFFINE, dtype=values.dtype).to_filename(path)
    volume = read_volume(path)
    assert volume.voxels.dtype in (np.uint8, np.int16, np.float32)
    assert np.array_equal(volume.voxels, values.astype(float))


def test_nan_and_infinity_become_the_ends_of_the_finite_values(tmp_path):
    values = np.array([[[np.nan, -np.inf, np.inf, -3, 5]]], np.float32)
    assert read_volume(nifti(tmp_path / "a.nii", values)).voxels.ravel().tolist() == [-3, -3, 5, -3, 5]


def test_nifti_of_one_slice_and_of_one_time_point(tmp_path, noise):
    assert read_volume(nifti(tmp_path / "a.nii", noise(5, 4))).shape == (5, 4, 1)
    assert read_volume(nifti(tmp_path / "b.nii", noise(5, 4, 3, 1))).shape == (5, 4, 3)


def test_nifti_of_colours_is_rgb(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 3), np.uint8)
    rgb = values.copy().view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    volume = read_volume(nifti(tmp_path / "a.nii", rgb))
    assert volume.is_rgb
    assert np.array_equal(volume.voxels, values)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((3, 3, 3, 4), np.int16), "4 dimensions"),
        (np.zeros((3, 3, 3), np.complex64), "complex64"),
        (np.full((3, 3, 3), np.nan, np.float32), "no voxel holds a finite number"),
    ],
)
def test_nifti_that_is_no_volume_is_refused(tmp_path, values, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        read_volume(nifti(tmp_path / "a.nii.gz", values))


def test_nifti_without_a_usable_affine_is_refused(tmp_path, noise):
    path = nifti(tmp_path / "a.nii", noise(3, 3, 3))
    data = bytearray(path.read_bytes())
    data[252:256] = struct.pack("<hh", 0, 1)
    data[280:328] = bytes(48)
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match="geometry"):
        read_volume(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 340, 400])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".png", ".jpg", ".dcm"])
def test_files_cut_off_anywhere_are_refused_and_named(tmp_path, noise, ending, keep):
    path = tmp_path / f"cut{ending}"
    if ending in (".png", ".jpg"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    elif ending == ".nrrd":
        nrrd.write(str(path), noise(8, 8, 8))
    elif ending == ".dcm":
        path.write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    else:
        nifti(path, noise(8, 8, 8))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnreadableImageError, match=path.name):
        read_volume(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".png", ".jpeg", ".dcm", "", ".txt"])
def test_a_text_file_is_no_image_whatever_its_name(tmp_path, ending):
    path = tmp_path / f"notes{ending}"
    path.write_text("these are notes about an image\n" * 50)
    with pytest.raises(UnreadableImageError):
        read_volume(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(NotFoundError, match=r"no file or folder 'gone\.nii'"):
        read_volume(tmp_path / "gone.nii")


def test_nifti_larger_than_memory_is_refused_from_its_header(tmp_path, noise, monkeypatch):
    monkeypatch.setattr(medsa.data.limits, "available_memory", lambda: 1000)
    with pytest.raises(TooLargeError, match="8 x 8 x 8"):
        read_volume(nifti(tmp_path / "a.nii.gz", noise(8, 8, 8)))


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS"])
def test_nrrd_lies_where_its_space_says(tmp_path, noise, space, encoding):
    values, to_ras = noise(5, 4, 3), {"l": (-1, -1, 1), "r": (1, 1, 1), "L": (-1, 1, 1)}[space[0]]
    header = {"space": space, "space directions": np.diag([0.7, 0.5, 2]), "space origin": [1, 2, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), values, {**header, "encoding": encoding})
    volume = read_volume(tmp_path / "a.nrrd")
    assert np.array_equal(volume.voxels, values)
    assert np.allclose(np.diag(volume.affine)[:3], np.array(to_ras) * [0.7, 0.5, 2])
    assert np.allclose(volume.affine[:3, 3], np.array(to_ras) * [1, 2, 3])


def test_nrrd_unpacks_no_more_than_its_header_says(tmp_path):
    bomb = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = bomb.compress(bytes(2**24)) + bomb.flush()
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: gzip\n\n"
    (tmp_path / "a.nrrd").write_bytes(head + packed)
    assert read_volume(tmp_path / "a.nrrd").shape == (2, 2, 2)


def test_nrrd_that_points_at_another_file_is_refused(tmp_path):
    head = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: /etc/passwd\n\n"
    (tmp_path / "a.nrrd").write_bytes(head)
    with pytest.raises(UnreadableImageError, match="elsewhere"):
        read_volume(tmp_path / "a.nrrd")


def test_pictures_are_one_slice_of_columns_and_rows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png")
    assert volume.shape == (6, 4, 1)
    assert np.array_equal(volume.voxels[:, :, 0], pixels.swapaxes(0, 1))
    assert np.array_equal(volume.spacing, [1, 1, 1])


def test_grey_pictures_keep_their_values(tmp_path):
    for name, pixels in (("a", np.uint8([[1, 2, 200]])), ("b", np.uint16([[1, 2, 40000]]))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        assert read_volume(tmp_path / f"{name}.png").voxels.ravel().tolist() == pixels.ravel().tolist()


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "1"])
def test_pictures_of_every_mode_open(tmp_path, mode):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).convert(mode).save(
        tmp_path / "a.png"
    )
    volume = read_volume(tmp_path / "a.png")
    assert volume.is_rgb == (mode in ("RGBA", "P"))
    assert volume.shape == (8, 8, 1)


def test_a_picture_that_unpacks_to_a_monster_is_refused(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 200_000, 200_000, 8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(UnreadableImageError, match="unreasonable size"):
        read_volume(path)


def _save(folder: Path, datasets: list) -> None:
    folder.mkdir(exist_ok=True)
    for number, ds in enumerate(datasets):
        ds.save_as(folder / f"{number}.dcm", enforce_file_format=True)


def test_a_folder_with_one_series_and_other_things_is_read(tmp_path, draw_series, noise):
    voxels = noise(3, 4, 5)
    _save(tmp_path / "study", draw_series(voxels))
    (tmp_path / "study" / "README.txt").write_text("notes")
    (tmp_path / "study" / "report.dcm").write_bytes(Path(get_testdata_file("test-SR.dcm")).read_bytes())
    assert np.array_equal(read_volume(tmp_path / "study").voxels, voxels.T)


def test_a_folder_with_two_series_lists_them(tmp_path, draw_series, noise):
    _save(tmp_path / "a", draw_series(noise(3, 2, 2)))
    _save(tmp_path / "b", draw_series(noise(2, 2, 2), SeriesInstanceUID="1.2.9", Modality="MR"))
    with pytest.raises(
        UnreadableImageError, match=r"2 series, give one of them: 3 x CT as 'a/0\.dcm'; 2 x MR as 'b/0\.dcm'"
    ):
        read_volume(tmp_path)


@pytest.mark.parametrize("content", [b"", b"nothing like DICOM" * 100])
def test_a_folder_with_a_broken_slice_is_refused_not_shortened(tmp_path, draw_series, noise, content):
    _save(tmp_path, draw_series(noise(3, 2, 2)))
    (tmp_path / "2.dcm").write_bytes(content)
    with pytest.raises(UnreadableImageError, match=r"'2\.dcm'"):
        read_volume(tmp_path)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(UnreadableImageError, match="no DICOM image"):
        read_volume(tmp_path)
    (tmp_path / "report.dcm").write_bytes(Path(get_testdata_file("test-SR.dcm")).read_bytes())
    with pytest.raises(UnreadableImageError, match="only an object without pixels"):
        read_volume(tmp_path)


def test_a_series_without_uid_is_known_by_its_name(tmp_path, draw_series, noise):
    _save(tmp_path / "case7", draw_series(noise(3, 2, 2), SeriesInstanceUID=""))
    assert read_volume(tmp_path / "case7").uid == "case7"


def test_a_gzip_that_is_damaged_inside_is_refused(tmp_path, noise):
    path = nifti(tmp_path / "a.nii.gz", noise(20, 20, 20))
    data = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=r"a\.nii\.gz"):
        read_volume(path)


def test_neither_logs_nor_warnings_quote_the_header(tmp_path, draw_series, noise, caplog, recwarn):
    slices = draw_series(noise(2, 2, 2), PatientBirthDate="Doe^Jane", PatientID="Doe^Jane" * 20)
    _save(tmp_path, slices)
    read_volume(tmp_path)
    assert "Doe" not in caplog.text
    assert not any("Doe" in str(warning.message) for warning in recwarn)
