"""A folder of images: files and series, labels beside them, ids and tags that cannot leave it."""

import json
import shutil

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from medsa.data.dicom import volume_from_datasets
from medsa.data.labels import load_labels
from medsa.data.read_label import read_label
from medsa.data.write import write_image, write_mask
from medsa.demo.studies import abdomen
from medsa.errors import BadInputError, LabelMismatchError, MedsaError, NotFoundError, StoreUnavailableError
from medsa.server.batch import read_original
from medsa.server.folder import FolderStore
from medsa.training.cases import read_cases

LABELS = load_labels()
LIVER = LABELS.by_name("liver").index


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def drawing():
    return abdomen((32, 32, 8))


def drawn(volume, value=1, slices=(3, 4)):
    mask = np.zeros(volume.shape, np.uint8, order="F")
    for k in slices:
        mask[10:20, 12:25, k] = value
    return mask


def saved(store, image, tmp_path, idx=LIVER):
    path = tmp_path / "label.nii.gz"
    write_mask(path, drawn(store.volume(image), idx), store.volume(image))
    return store.save_label(image, str(path), "final", {"label_info": [{"name": "liver", "idx": idx}]})


@pytest.fixture
def folder(tmp_path, drawing):
    volume = volume_from_datasets(drawing.datasets)
    path = tmp_path / "images"
    path.mkdir()
    write_image(path / "case_1.nii.gz", volume)
    write_image(path / "case.2.nii.gz", volume)
    series = path / "series"
    series.mkdir()
    for n, dataset in enumerate(drawing.datasets):
        pydicom.dcmwrite(series / f"{n}.dcm", dataset, enforce_file_format=True)
    return path


def test_a_folder_serves_files_and_series_and_keeps_labels_beside_them(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    assert store.list_images() == ["case.2", "case_1", "series"]
    assert store.volume("series").shape == store.volume("case_1").shape
    mask = drawn(store.volume("case_1"), 5)
    path = tmp_path / "label.nii.gz"
    write_mask(path, mask, store.volume("case_1"))
    store.save_label("case_1", str(path), "final", {"label_info": [{"name": "liver", "idx": 5}]})
    again = FolderStore(str(folder), LABELS)
    assert again.get_unlabeled_images() == ["case.2", "series"]
    assert again.newest_label("case_1")[1] == {5: "liver"}
    assert np.array_equal(again.newest_label("case_1")[0], mask)
    assert again.datalist() == [
        {"image": str(folder / "case_1.nii.gz"), "label": str(folder / "labels/final/case_1.nii.gz")}
    ]
    again.remove_label("case_1", "final")
    assert "case_1" in again.get_unlabeled_images()


@pytest.mark.parametrize("bad", ["../x", "..", "/etc/passwd", "labels", "", "a/b"])
def test_ids_and_tags_cannot_leave_the_folder(folder, bad, tmp_path):
    store = FolderStore(str(folder), LABELS)
    with pytest.raises(NotFoundError):
        store.volume(bad)
    path = tmp_path / "label.nii.gz"
    write_mask(path, drawn(store.volume("case_1"), 5), store.volume("case_1"))
    if bad != "labels":
        with pytest.raises(BadInputError, match="tag"):
            store.save_label("case_1", str(path), bad or ".", {})
    with pytest.raises(BadInputError, match="plain name"):
        store.add_image(bad or ".", str(path), {})
    assert {p.name for p in tmp_path.iterdir()} <= {"cache", "images", "label.nii.gz"}


def test_values_in_the_label_files_mean_the_same_whoever_saved_them(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    for image, idx in (("case_1", 1), ("case.2", 7)):
        saved(store, image, tmp_path, idx)
    for pair in store.datalist():
        assert set(np.unique(nibabel.load(pair["label"]).get_fdata())) == {0, LIVER}


def test_a_dicom_series_and_its_label_are_training_files_on_one_grid(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    saved(store, "series", tmp_path)
    (pair,) = store.datalist()
    image, label = nibabel.load(pair["image"]), nibabel.load(pair["label"])
    assert image.shape == label.shape
    np.testing.assert_allclose(image.affine, label.affine)
    assert store.get_image_info("series")["name"] == "series.nii.gz"


def test_series_that_are_called_by_their_uids_are_told_apart(folder, tmp_path):
    for last in "45":
        shutil.copytree(folder / "series", folder / f"1.2.3.{last}")
    store = FolderStore(str(folder), LABELS)
    assert {"1.2.3.4", "1.2.3.5"} <= set(store.list_images())
    saved(store, "1.2.3.5", tmp_path)
    assert store.newest_label("1.2.3.4") is None
    assert store.newest_label("1.2.3.5") is not None
    (case,) = read_cases(folder)
    assert (case.id, case.image) == ("1.2.3.5", folder / "1.2.3.5")


def test_a_label_off_the_grid_is_refused(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    path = tmp_path / "wrong.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), path)
    with pytest.raises(LabelMismatchError):
        store.save_label("case_1", str(path), "final", {})
    assert store.get_labeled_images() == []


def test_images_can_be_asked_for_by_their_labels(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    saved(store, "case_1", tmp_path)
    assert store.get_labeled_images(labels=["Liver"]) == ["case_1"]
    assert store.get_labeled_images(labels=["liver", "spleen"]) == []
    assert "case_1" in store.get_unlabeled_images(labels=["spleen"])


def test_a_label_of_255_on_a_picture_is_read_back_as_what_it_was_named(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(place / "skin.png")
    store = FolderStore(str(place), LABELS)
    Image.fromarray(np.pad(np.full((5, 5), 255, np.uint8), ((3, 12), (4, 11)))).save(tmp_path / "label.png")
    store.save_label(
        "skin", str(tmp_path / "label.png"), "final", {"label_info": [{"name": "lesion", "idx": 255}]}
    )
    mask, names = store.newest_label("skin")
    lesion = LABELS.by_name("lesion").index
    assert names == {lesion: "lesion"}
    assert np.argwhere(mask == lesion).min(axis=0).tolist() == [4, 3, 0]


@pytest.fixture
def pictures(tmp_path):
    place = tmp_path / "pictures"
    place.mkdir()
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(place / "skin.png")
    return FolderStore(str(place), LABELS)


def test_the_label_file_of_a_picture_holds_the_value_of_its_only_label(pictures):
    mask = np.zeros((20, 20, 1), np.uint8)
    mask[4:9, 3:8] = LIVER
    pictures.save_mask("skin", mask, {LIVER: "liver"}, "original", {})
    path = pictures.folder / "labels" / "original" / "skin.png"
    assert np.array_equal(read_label(path, pictures.volume("skin"), LABELS), mask)


def test_a_black_and_white_label_of_an_earlier_version_means_what_was_noted(pictures):
    mask = np.zeros((20, 20, 1), np.uint8)
    mask[4:9, 3:8] = LIVER
    pictures.save_mask("skin", mask, {LIVER: "liver"}, "final", {})
    path = pictures.folder / "labels" / "final" / "skin.png"
    Image.fromarray(np.where(mask[:, :, 0].T, np.uint8(255), np.uint8(0))).save(path)
    found, names = pictures.newest_label("skin")
    assert names == {LIVER: "liver"}
    assert np.array_equal(found, mask)
    path.parent.rename(path.parent.with_name("original"))
    assert np.array_equal(read_original(pictures, "skin", pictures.volume("skin")), mask)


def test_saved_labels_are_private_whole_files(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    saved(store, "case_1", tmp_path)
    files = [path for path in (folder / "labels").rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
    assert sorted(path.name for path in files) == ["case_1.json", "case_1.nii.gz"]


def test_a_damaged_series_does_not_hide_the_other_images(folder):
    (folder / "broken").mkdir()
    (folder / "broken" / "0.dcm").write_bytes(b"cut off")
    store = FolderStore(str(folder), LABELS)
    assert store.list_images() == ["broken", "case.2", "case_1", "series"]
    with pytest.raises(MedsaError):
        store.volume("broken")


def test_a_folder_without_images_inside_is_no_image(folder):
    (folder / "notes").mkdir()
    (folder / "notes" / "readme.txt").write_text("nothing")
    assert "notes" not in FolderStore(str(folder), LABELS).list_images()


def test_an_image_that_changes_is_read_anew(folder, drawing):
    store = FolderStore(str(folder), LABELS)
    before = store.volume("case_1")
    assert store.volume("case_1") is before
    write_image(folder / "case_1.nii.gz", volume_from_datasets(drawing.datasets[:5]))
    assert store.volume("case_1").shape[2] == 5


def test_a_series_that_grows_or_changes_anywhere_below_its_folder_is_read_anew(folder, drawing):
    series = folder / "series"
    (series / "SER1").mkdir()
    for n in range(5):
        (series / f"{n}.dcm").rename(series / "SER1" / f"{n}.dcm")
    for n in range(5, 8):
        (series / f"{n}.dcm").unlink()
    store = FolderStore(str(folder), LABELS)
    assert store.volume("series").shape[2] == 5
    states, files = [store.described()["series"].state], [store.get_image_uri("series")]
    for n in range(5, 8):
        pydicom.dcmwrite(series / "SER1" / f"{n}.dcm", drawing.datasets[n], enforce_file_format=True)
    assert store.volume("series").shape[2] == 8
    states.append(store.described()["series"].state)
    files.append(store.get_image_uri("series"))
    other = drawing.datasets[0].copy()
    other.PixelData = bytes(len(other.PixelData))
    pydicom.dcmwrite(series / "SER1" / "0.dcm", other, enforce_file_format=True)
    assert not np.array_equal(store.volume("series").voxels, nibabel.load(files[1]).get_fdata())
    states.append(store.described()["series"].state)
    files.append(store.get_image_uri("series"))
    assert len(set(states)) == len(set(files)) == 3
    assert states[2] == FolderStore(str(folder), LABELS).described()["series"].state


def test_a_folder_that_went_away_is_said_to_be(tmp_path):
    store = FolderStore(str(tmp_path / "gone"), LABELS)
    (tmp_path / "gone").rmdir()
    with pytest.raises(StoreUnavailableError, match="cannot be read"):
        store.list_images()


def test_an_image_is_taken_in_whole_and_leaves_with_its_labels(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    assert store.add_image("new", str(folder / "case_1.nii.gz"), {"from": "a test"}) == "new"
    assert store.get_image_info("new")["from"] == "a test"
    saved(store, "new", tmp_path)
    store.remove_image("new")
    assert "new" not in store.list_images()
    assert store.get_labeled_images() == []
    with pytest.raises(NotFoundError):
        store.get_label_uri("new", "final")


def test_files_that_no_request_can_name_are_left_out_and_counted_once_in_the_log(folder, tmp_path, caplog):
    for name in ("2024-01-01T10:30.nii", "DOE\udcff.nii", "a\nb.nii", "x" * 250 + ".dcm"):
        (folder / name).write_bytes(b"")
    store = FolderStore(str(folder), LABELS)
    with caplog.at_level("WARNING"):
        for _ in range(3):
            assert store.list_images() == ["case.2", "case_1", "series"]
        assert json.dumps(store.json(), ensure_ascii=False).encode()
    [record] = caplog.records
    assert "4 files" in record.message
    assert not any(name in record.message for name in ("2024", "DOE"))
    with pytest.raises(NotFoundError):
        store.volume("2024-01-01T10:30")


def test_a_folder_beside_the_tags_that_is_none_is_no_matter(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    saved(store, "case_1", tmp_path)
    shutil.copytree(folder / "labels" / "final", folder / "labels" / "final.bak")
    assert store.get_labels_by_image_id("case_1") == {"final": "case_1"}
    assert store.json()["objects"]["case_1"]["labels"] == {"final": "case_1"}
    store.remove_image("case_1")
    assert "case_1" not in store.list_images()


@pytest.mark.parametrize("length", [244, 248])
def test_an_image_with_the_longest_name_can_be_sent_and_labelled(folder, tmp_path, length):
    store = FolderStore(str(folder), LABELS)
    name = "n" * length
    store.add_image(name, str(folder / "case_1.nii.gz"), {})
    saved(store, name, tmp_path)
    assert store.get_labeled_images() == [name]
    with pytest.raises(BadInputError, match="too long"):
        store.add_image("n" * 249, str(folder / "case_1.nii.gz"), {})


def test_everything_can_be_told_as_json(folder, tmp_path):
    store = FolderStore(str(folder), LABELS)
    saved(store, "case_1", tmp_path)
    told = json.loads(json.dumps(store.json()))
    assert told["objects"]["case_1"]["labels"] == {"final": "case_1"}
    assert store.status() == {"total": 3, "completed": 1, "label_tags": {"final": 1}}
