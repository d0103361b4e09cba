"""Every public data set is read from a miniature in its official layout; what lacks elsewhere is said."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsa.cli import main
from medsa.datasets import dataset_names, find_cases, read_dataset
from medsa.datasets.check import check
from medsa.errors import BadInputError, ConfigurationError, MedsaError, NotFoundError

SHAPE = (18, 12, 3)
DDTI = """<case><number>7</number><mark><image>1</image>
<svg>[{"points": [{"x": 2, "y": 3}, {"x": 8, "y": 3}, {"x": 8, "y": 9}], "regionType": "freehand"}]</svg>
</mark><mark><image>2</image><svg></svg></mark></case>"""
EVERY = dataset_names()


def block(values: list[int], shape: tuple[int, ...] = SHAPE, ground: int = 0) -> np.ndarray:
    """Stripes of values on a ground."""
    mask = np.full(shape, ground, np.uint8)
    for n, value in enumerate(values):
        mask[n % shape[0], 2:9] = value
    return mask


def volume(path: Path, voxels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), path)


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def scan(folder: Path, image: str, label: str, values: list[int]) -> None:
    volume(folder / image, np.random.default_rng(0).integers(-200, 200, SHAPE).astype(np.int16))
    volume(folder / label, block(values))


def photo(folder: Path, image: str, label: str, values: list[int], ground: int = 0) -> None:
    picture(folder / image, np.random.default_rng(0).integers(0, 255, (12, 14, 3)).astype(np.uint8))
    picture(folder / label, block(values, (12, 14), ground))


def btcv(folder: Path) -> None:
    for n in (1, 2):
        scan(folder, f"RawData/Training/img/img000{n}.nii.gz",
                   f"RawData/Training/label/label000{n}.nii.gz", list(range(1, 14)))  # fmt: skip
    volume(folder / "RawData/Testing/img/img0061.nii.gz", block([1]))


def amos(folder: Path) -> None:
    for kind, numbers in (("Tr", ("0001", "0500", "0507")), ("Va", ("0008", "0600"))):
        for n in numbers:
            where = f"{{}}{kind}/amos_{n}.nii.gz"
            scan(folder, where.format("images"), where.format("labels"), list(range(1, 16)))


def refuge(folder: Path) -> None:
    for split, names in (("train", ("g0001", "n0001")), ("val", ("V0001",)), ("test", ("T0001",))):
        for name in names:
            photo(folder, f"{split}/images/{name}.jpg", f"{split}/mask/{name}.bmp", [128, 0, 0, 128], 255)


def brats(folder: Path) -> None:
    for n in ("00000", "00002"):
        case = f"BraTS2021_{n}"
        for kind in ("flair", "t1", "t1ce", "t2"):
            scan(folder, f"{case}/{case}_{kind}.nii.gz", f"{case}/{case}_seg.nii.gz", [1, 2, 4])


def tnmix(folder: Path) -> None:
    for n in (1, 2):
        photo(folder, f"TNSCUI2020_train/image/{n}.PNG", f"TNSCUI2020_train/mask/{n}.PNG", [255])
    for n in (1, 2):
        picture(folder / f"DDTI/7_{n}.jpg", np.zeros((12, 14, 3), np.uint8))
    (folder / "DDTI/7.xml").write_text(DDTI)


def isic(*parts: tuple[str, str, str]) -> Callable[[Path], None]:
    def draw(folder: Path) -> None:
        for number, (images, labels, end) in enumerate(parts):
            name = f"ISIC_000000{number}"
            photo(folder, f"{images}/{name}.jpg", f"{labels}/{name}{end}.png", [255])

    return draw


def prostate(folder: Path) -> None:
    for site in ("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK"):
        end = "_segmentation" if site != "BMC" else "_Segmentation"
        scan(folder, f"{site}/Case00.nii.gz", f"{site}/Case00{end}.nii.gz", [1, 2] if site == "BMC" else [1])


def endovis(folder: Path) -> None:
    for place in (
        "miccai_challenge_2018_release_1/seq_1",
        "miccai_challenge_release_2/seq_5",
        "test_data/seq_1",
    ):
        for n in (0, 1):
            picture(folder / place / f"left_frames/frame00{n}.png", np.zeros((12, 14, 3), np.uint8))
            picture(folder / place / f"right_frames/frame00{n}.png", np.zeros((12, 14, 3), np.uint8))
            colours = np.zeros((12, 14, 4), np.uint8) + np.uint8([0, 0, 0, 255])
            colours[2:5, 2:9, :3], colours[7:9, 2:9, :3] = (0, 255, 255), (124, 155, 5)
            picture(folder / place / f"labels/frame00{n}.png", colours)


def decathlon(folder: Path, channels: int = 1, organ: str = "gland", modality: str = "CT") -> None:
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    for n in (1, 2):
        volume(folder / f"imagesTr/case_{n}.nii.gz", np.arange(np.prod(shape), dtype=np.int16).reshape(shape))
        volume(folder / f"labelsTr/case_{n}.nii.gz", block([1, 2]))
    pairs = [{"image": f"./imagesTr/case_{n}.nii.gz", "label": f"./labelsTr/case_{n}.nii.gz"} for n in (1, 2)]
    names = {"0": "background", "1": organ, "2": "cancer"}
    content = {"modality": {"0": modality}, "labels": names, "training": pairs}
    (folder / "dataset.json").write_text(json.dumps(content))


END, UPPER = "_segmentation", "_Segmentation"
DRAWN = {
    "btcv": (btcv, {"train": 2}, set(range(1, 14))),
    "amos22_ct": (amos, {"train": 2, "test": 1}, set(range(1, 16))),
    "amos22_mr": (amos, {"train": 1, "test": 1}, set(range(1, 16))),
    "refuge2_disc": (refuge, {"train": 2, "val": 1, "test": 1}, {1}),
    "refuge2_cup": (refuge, {"train": 2, "val": 1, "test": 1}, {1}),
    "brats2021": (brats, {"train": 2}, {1, 2, 3}),
    "brats2021_whole": (brats, {"train": 2}, {1}),
    "tnmix": (tnmix, {"train": 4}, {1}),
    "isic2016": (
        isic(("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth", UPPER),
             ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth", UPPER)),
        {"train": 1, "test": 1}, {1},
    ),
    "isic2017": (
        isic(("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth", END),
             ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth", END),
             ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth", END)),
        {"train": 1, "val": 1, "test": 1}, {1},
    ),
    "isic2018": (
        isic(("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth", END),
             ("ISIC2018_Task1-2_Validation_Input", "ISIC2018_Task1_Validation_GroundTruth", END),
             ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth", END)),
        {"train": 1, "val": 1, "test": 1}, {1},
    ),
    "prostate": (prostate, dict.fromkeys("ABCDEF", 1), {1}),
    "endovis18": (endovis, {"train": 4, "test": 2}, {2, 10}),
    "msd": (decathlon, {"train": 2}, {1, 2}),
    "msd_pancreas": (partial(decathlon, organ="pancreas"), {"train": 2}, {1, 2}),
}  # fmt: skip


def test_every_data_set_has_its_miniature() -> None:
    assert set(DRAWN) == set(EVERY)


@pytest.mark.parametrize("name", EVERY)
def test_the_official_layout_is_read(name: str, tmp_path: Path) -> None:
    draw, splits, values = DRAWN[name]
    draw(tmp_path)
    dataset = read_dataset(name)
    assert {split: len(find_cases(dataset, tmp_path, split)) for split in dataset.splits} == splits
    cases = find_cases(dataset, tmp_path)
    assert len(cases) == sum(splits.values()) == len({case.id for case in cases})
    occurs = set()
    for case in cases:
        image, mask, names = case.read()
        assert mask.shape == image.shape
        assert mask.dtype == np.uint8
        assert image.modality == (dataset.modality or "CT")
        assert names.items() <= (dataset.names or {1: "gland", 2: "cancer"}).items()
        occurs |= set(names)
    assert occurs == values
    found = check(dataset, tmp_path)
    missing = [line for line in found.wrong if " pairs, not " not in line]
    assert missing == []  # but for the number of pairs
    assert len(found.occurs) == len(values)


def test_colours_that_the_set_does_not_have_are_told(tmp_path: Path) -> None:
    endovis(tmp_path)
    for path in tmp_path.rglob("labels/*.png"):
        picture(path, np.full((12, 14, 3), (1, 254, 1), np.uint8))
    noisy = np.random.default_rng(0).integers(0, 255, (12, 14, 3), dtype=np.uint8)
    picture(path, noisy)  # as a JPEG would hold them
    found = check(read_dataset("endovis18"), tmp_path)
    told = [line for line in found.wrong if "colours that the data set does not have" in line]
    assert len(told) == 5
    assert any(", (1,254,1): expected (0,255,0), (0,255,255)" in line for line in told)
    assert found.wrong[-1] == "1 more pairs are wrong"


def test_values_that_the_set_does_not_have_are_no_background(tmp_path: Path) -> None:
    """As where others have written 3 for BraTS' 4: a whole tumour would get a hole."""
    brats(tmp_path)
    path = next(tmp_path.rglob("*_seg.nii.gz"))
    volume(path, block([1, 2, 3]))
    for name in ("brats2021", "brats2021_whole"):
        case = next(case for case in find_cases(read_dataset(name), tmp_path) if case.label == path)
        with pytest.raises(MedsaError, match=r"does not have, 3: expected 0, 1, 2, 4"):
            case.read()


def test_another_task_of_the_decathlon_is_refused(tmp_path: Path) -> None:
    for wrong in ({"organ": "Anterior"}, {"organ": "pancreas", "modality": "MRI"}):
        decathlon(tmp_path, **wrong)
        with pytest.raises(
            BadInputError, match=r"another data set: expected pancreas in CT, found \w+, cancer"
        ):
            find_cases(read_dataset("msd_pancreas"), tmp_path)


def test_a_part_that_is_not_there_is_told(tmp_path: Path) -> None:
    photo(tmp_path, "TNSCUI2020_train/image/1.PNG", "TNSCUI2020_train/mask/1.PNG", [255])
    wrong = check(read_dataset("tnmix"), tmp_path).wrong
    assert "train has 1 pairs, not 3644, of TNSCUI2020_train/image/<case>.<ending>" in wrong
    assert "train has 0 pairs, not one or more, of DDTI/<case>_<number>.jpg" in wrong


def test_patients_are_told_apart_and_kept_together(tmp_path: Path) -> None:
    for name, draw, patients in (("endovis18", endovis, 3), ("tnmix", tnmix, 3), ("prostate", prostate, 6)):
        draw(tmp_path / name)
        cases = find_cases(read_dataset(name), tmp_path / name)
        assert len({case.patient for case in cases}) == patients


def test_a_disc_is_its_cup_and_its_rim(tmp_path: Path) -> None:
    refuge(tmp_path)
    disc, cup = (
        find_cases(read_dataset(f"refuge2_{what}"), tmp_path, "val")[0].read()[1] for what in ("disc", "cup")
    )
    assert disc.sum() == 4 * 7
    assert cup.sum() == 2 * 7
    assert (cup <= disc).all()


def test_polygons_are_filled_and_a_picture_without_one_has_no_object(tmp_path: Path) -> None:
    tnmix(tmp_path)
    first, second = (
        case.read()[1][:, :, 0] for case in find_cases(read_dataset("tnmix"), tmp_path) if case.polygons
    )
    assert first[7, 4] == 1
    assert first[3, 8] == first[12, 3] == 0
    assert not second.any()


def test_of_several_sequences_the_first_is_looked_at(tmp_path: Path) -> None:
    decathlon(tmp_path, channels=2)
    image, mask, _ = find_cases(read_dataset("msd"), tmp_path)[0].read()
    assert image.shape == mask.shape == SHAPE
    assert image.voxels[0, 0, 1] - image.voxels[0, 0, 0] == 2


def test_another_folder_is_told_what_was_expected_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "something").mkdir()
    (tmp_path / "notes.txt").write_text("")
    for name in EVERY:
        with pytest.raises(BadInputError, match=r"expected .*found .*folders \(1\)") as told:
            find_cases(read_dataset(name), tmp_path)
        assert read_dataset(name).title in str(told.value)
        assert "something" not in str(told.value)  # it may be a patient's name
    with pytest.raises(NotFoundError):
        find_cases(read_dataset("btcv"), tmp_path / "nowhere")
    for damaged in ("{", "[]", '{"training": 3}'):
        (tmp_path / "dataset.json").write_text(damaged)
        with pytest.raises(BadInputError, match="is no Decathlon dataset"):
            find_cases(read_dataset("msd"), tmp_path)
    with pytest.raises(BadInputError, match="no split 'test': take one of train"):
        find_cases(read_dataset("btcv"), tmp_path, "test")
    with pytest.raises(ConfigurationError, match=r"unknown data set 'btvc'; there are: amos22_ct"):
        read_dataset("btvc")


def test_an_incomplete_download_is_told_what_lacks(tmp_path: Path, capsys) -> None:
    btcv(tmp_path)
    training = tmp_path / "RawData" / "Training"
    volume(training / "img/img0003.nii.gz", block([1]))
    volume(training / "label/label0002.nii.gz", block([77]))
    found = training / "label/label0001.nii.gz"
    found.write_bytes(found.read_bytes()[:60])
    assert main(["datasets", "check", "btcv", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "train: 2 pairs of 2 patients, 30 expected" in out
    assert "train has 2 pairs, not 30" in err
    assert "1 images have no label, such as RawData/Training/img/img0003.nii.gz" in err
    assert "label0001.nii.gz: the label is cut off" in err
    assert "label0002.nii.gz: holds values that the data set does not have, 77: expected 0, 1, 2" in err
    with pytest.raises(BadInputError, match="1 images have no label, such as RawData/Training/img/img0003"):
        find_cases(read_dataset("btcv"), tmp_path)


def test_the_list_names_all_and_one_is_shown(capsys) -> None:
    assert main(["datasets"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EVERY)
    assert main(["datasets", "show", "refuge2_cup"]) == 0
    shown = capsys.readouterr().out
    assert "test/images/<case>.jpg with test/mask/<case>.bmp, 400 pairs" in shown
    assert "terms:" in shown


def test_a_label_of_another_size_is_a_sentence(tmp_path: Path) -> None:
    DRAWN["isic2016"][0](tmp_path)
    case = find_cases(read_dataset("isic2016"), tmp_path, "train")[0]
    picture(case.label, np.zeros((5, 5), np.uint8))
    with pytest.raises(MedsaError, match=r"its size \(5, 5\) is not the image's \(14, 12\)"):
        case.read()
