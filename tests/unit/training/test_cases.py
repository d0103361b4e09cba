"""Labelled folders in three layouts become cases; what is wrong with them is said in a sentence."""

import json
from copy import deepcopy
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from medsa.data.labels import load_labels
from medsa.data.volume import Volume
from medsa.data.write import write_image, write_mask
from medsa.errors import BadInputError, LabelMismatchError, MedsaError, NotFoundError
from medsa.training.cases import read_cases, wanted


def write_study(image: Path, label: Path, shape: tuple[int, int, int] = (12, 10, 4)) -> None:
    volume = Volume(np.asfortranarray(np.random.default_rng(0).normal(0, 1, shape), np.float32), np.eye(4))
    mask = np.zeros(shape, np.uint8, order="F")
    mask[2:6, 2:6, 1], mask[7:9, 7:9, 1:3] = 1, 2
    for folder in (image.parent, label.parent):
        folder.mkdir(parents=True, exist_ok=True)
    write_image(image, volume)
    write_mask(label, mask, volume)


def test_images_and_labels(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_study(tmp_path / "images" / f"{name}.nii.gz", tmp_path / "labels" / f"{name}.nii.gz")
    cases = read_cases(tmp_path)
    assert [case.id for case in cases] == ["a", "b"]
    volume, mask, names = cases[0].read()
    assert mask.shape == volume.shape == (12, 10, 4)
    assert names == {1: "label 1", 2: "label 2"}


def test_a_monai_label_folder_with_the_names_of_its_label_set(tmp_path: Path) -> None:
    write_study(tmp_path / "a.nii.gz", tmp_path / "labels" / "final" / "a.nii.gz")
    labels = load_labels("cardiac")
    (case,) = read_cases(tmp_path, labels)
    assert case.read()[2] == {value: labels.names[value] for value in (1, 2)}


def test_a_decathlon_dataset(tmp_path: Path) -> None:
    write_study(tmp_path / "imagesTr" / "x.nii.gz", tmp_path / "labelsTr" / "x.nii.gz")
    content = {
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [{"image": "./imagesTr/x.nii.gz", "label": "./labelsTr/x.nii.gz"}],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    for given in (tmp_path, tmp_path / "dataset.json"):
        (case,) = read_cases(given)
        assert case.read()[2] == {1: "Anterior", 2: "Posterior"}
    assert wanted([case], ["posterior"]) == {2: "Posterior"}
    assert wanted([case], ["1"]) == {1: "Anterior"}
    with pytest.raises(BadInputError, match=r"'liver'; there are: 1 Anterior, 2 Posterior"):
        wanted([case], ["liver"])
    assert wanted([case], [" posterior", " 1 "]) == {2: "Posterior", 1: "Anterior"}
    assert wanted([case], ["1=head", "2 = tail"]) == {1: "head", 2: "tail"}
    for wrong in (["0"], ["²"], ["=head"], ["1", "anterior"], ["1=head", "2=head"]):
        with pytest.raises(BadInputError):
            wanted([case], wrong)


def test_labels_without_names_are_those_of_all_studies(tmp_path: Path) -> None:
    for name in "ab":
        write_study(tmp_path / "images" / f"{name}.nii.gz", tmp_path / "labels" / f"{name}.nii.gz")
    mask = np.zeros((12, 10, 4), np.uint8)
    mask[2:5, 2:5, 1] = 5
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "labels/a.nii.gz")
    assert wanted(read_cases(tmp_path), []) == {1: "label 1", 2: "label 2", 5: "label 5"}


def test_pictures(tmp_path: Path) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.full((9, 7, 3), 90, np.uint8)).save(tmp_path / "images" / "skin.jpg")
    Image.fromarray(np.eye(9, 7, dtype=np.uint8) * 255).save(tmp_path / "labels" / "skin.png")
    (case,) = read_cases(tmp_path)
    volume, mask, names = case.read()
    assert volume.shape == mask.shape == (7, 9, 1)
    assert names == {1: "label 1"}


def test_a_study_without_any_object_is_a_case_too(tmp_path: Path) -> None:
    """As ultrasound of healthy people: nothing is marked, and there is nothing to ask for."""
    for name in "ab":
        write_study(tmp_path / "images" / f"{name}.nii.gz", tmp_path / "labels" / f"{name}.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((12, 10, 4), np.uint8), np.eye(4)), tmp_path / "labels/a.nii.gz"
    )
    cases = read_cases(tmp_path)
    _, mask, names = cases[0].read()
    assert not mask.any()
    assert names == {}
    assert wanted(cases, []) == {1: "label 1", 2: "label 2"}


def test_a_label_that_does_not_fit_is_named(tmp_path: Path) -> None:
    write_study(tmp_path / "images" / "a.nii.gz", tmp_path / "labels" / "a.nii.gz")
    write_study(tmp_path / "other" / "a.nii.gz", tmp_path / "labels" / "a.nii.gz", (12, 10, 5))
    with pytest.raises(LabelMismatchError, match=r"a\.nii\.gz"):
        read_cases(tmp_path)[0].read()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ((), "expected images/ and labels/"),
        (("images/a.png",), "no labels/ beside it"),
        (("images/a.png", "labels/b.png"), r"no image in images/ has a label .*b\.png has no image"),
        (("dataset.json",), "no Decathlon dataset"),
    ],
)
def test_what_is_no_dataset_is_said(tmp_path: Path, made: tuple[str, ...], said: str) -> None:
    for name in made:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    with pytest.raises(BadInputError, match=said):
        read_cases(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        read_cases(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text('{"training": [{"image": "x.nii", "label": "y.nii"}]}')
    with pytest.raises(MedsaError, match=r"x\.nii, which is not there"):
        read_cases(tmp_path)


def test_files_and_series_of_one_dicom_patient_are_one_patient(tmp_path: Path) -> None:
    one, two = (dcmread(get_testdata_file(name)) for name in ("CT_small.dcm", "MR_small.dcm"))
    two.PatientID = "other"
    again = deepcopy(one)
    again.SOPInstanceUID = again.SeriesInstanceUID = generate_uid()
    (tmp_path / "labels").mkdir()
    for name, dataset in (("a.dcm", one), ("b/first", again), ("c", two)):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path)
        (tmp_path / "labels" / f"{name[0]}.nii.gz").touch()
    (tmp_path / "images" / "c").rename(tmp_path / "images" / "c.dcm")
    cases = read_cases(tmp_path)
    patients = [case.patient for case in cases]
    assert len(patients) == 3
    assert patients[0] == patients[1] != patients[2]
