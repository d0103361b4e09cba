"""The command line: masks from files, and a sentence for whatever cannot be used."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from medsa import cli_overlay
from medsa.cli import main
from medsa.cli_segment import open_segmenter, parse_box, parse_point
from medsa.data.read import read_volume
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.data.window import Window
from medsa.demo.studies import DemoStudy, abdomen, save
from medsa.errors import BadInputError
from medsa.prompts import Prompt
from medsa.segmenter import Segmenter

COMMAND = [sys.executable, "-m", "medsa.cli"]
numbers = st.floats(-1e4, 1e4, allow_nan=False).map(lambda value: round(value, 3))


@pytest.fixture(scope="module")
def study() -> DemoStudy:
    return abdomen((96, 96, 12))


@pytest.fixture(scope="module")
def folder(study: DemoStudy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn CT as a folder of DICOM files."""
    path = tmp_path_factory.mktemp("images") / "ct"
    save(path, study.datasets)
    return path


@pytest.fixture(scope="module")
def nifti(folder: Path, study: DemoStudy) -> tuple[Path, Path]:
    """The same CT as NIfTI, and its liver (1) and spleen (2) as another."""
    volume = read_volume(folder)
    image, labels = folder.parent / "ct.nii.gz", folder.parent / "labels.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.voxels.astype(np.int16), volume.affine), image)
    truth = study.truth["liver"] + 2 * study.truth["spleen"].astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(truth.astype(np.uint8), volume.affine), labels)
    return image, labels


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey picture of 120 x 80 with a bright disc of radius 20 around (40, 45)."""
    i, j = np.indices((120, 80))
    disc = (i - 40) ** 2 + (j - 45) ** 2 < 20**2
    path = tmp_path_factory.mktemp("pictures") / "disc.png"
    Image.fromarray(np.where(disc, 190, 60).astype(np.uint8).T).save(path)
    return path


def centre(mask: np.ndarray, k: int) -> str:
    i, j = np.argwhere(mask[:, :, k]).mean(axis=0).round().astype(int)
    return f"{i},{j},{k}"


def run(*words: object) -> int:
    return main([str(word) for word in words])


def dice_printed(text: str, line: str) -> float:
    return float(next(row for row in text.splitlines() if row.startswith(line)).rpartition("Dice ")[2])


@given(i=numbers, j=numbers, k=st.none() | numbers, sign=st.sampled_from(["", ",+", ",-"]))
def test_a_point_is_what_was_typed(i: float, j: float, k: float | None, sign: str) -> None:
    text = f"{i},{j}" + ("" if k is None else f",{k}") + sign
    assert parse_point(text) == (i, j, k, sign != ",-")


@given(values=st.lists(numbers, min_size=6, max_size=6), flat=st.booleans())
def test_a_box_is_what_was_typed(values: list[float], flat: bool) -> None:
    given_values = values[:4] if flat else values
    corners, span = parse_box(",".join(map(str, given_values)))
    assert corners == values[:4]
    assert span == (None if flat else tuple(values[4:]))


@pytest.mark.parametrize("text", ["", "1", "1,2,3,4", "a,b", "1,2,3,*", "1,,2", "+", "1;2"])
def test_a_point_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInputError, match="as in 98,120,90"):
        parse_point(text)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "1,2,3,4,5,6,7"])
def test_a_box_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInputError, match="as in"):
        parse_box(text)


def test_a_box_on_one_slice_of_a_nifti_gives_its_organ_and_dice(
    nifti: tuple[Path, Path], study: DemoStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, labels = nifti
    i, j, k = np.nonzero(study.truth["liver"])
    at = int(np.bincount(k).argmax())
    i, j = i[k == at], j[k == at]
    box = f"{i.min()},{j.min()},{i.max()},{j.max()}"
    out = tmp_path / "liver.nii.gz"
    status = run(
        "segment",
        image,
        "--box",
        box,
        "--slice",
        at,
        "--slice-only",
        "--truth",
        labels,
        "--label",
        1,
        "-o",
        out,
    )
    printed = capsys.readouterr().out
    assert status == 0
    assert dice_printed(printed, f"slice {at}") > 0.8
    written, original = nibabel.load(out), nibabel.load(image)
    assert written.shape == original.shape
    np.testing.assert_allclose(written.affine, original.affine)
    mask = np.asarray(written.dataobj)
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) == {at}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_a_dicom_folder_becomes_a_dicom_seg_of_the_named_label(
    folder: Path, study: DemoStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, picture = tmp_path / "kidney.dcm", tmp_path / "look.png"
    truth = study.truth["left kidney"]
    k = int(truth.sum(axis=(0, 1)).argmax())
    point = centre(truth, k)
    status = run(
        "segment", folder, "--point", point, "--name", "left kidney", "-o", out, "--overlay", picture
    )
    printed = capsys.readouterr().out
    assert status == 0
    assert "slice" in printed
    mask = read_label(out, read_volume(folder))
    assert mask[tuple(map(int, point.split(",")))] == 1
    with Image.open(picture) as image:
        assert image.mode == "RGB"
        assert min(image.size) >= 256
    assert stat.S_IMODE(picture.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kidney.dcm", "look.png"]


def test_a_mask_is_corrected_where_a_point_contradicts_it_and_finished_as_asked(
    nifti: tuple[Path, Path], tmp_path: Path
) -> None:
    image, labels = nifti
    whole, less = tmp_path / "whole.nii.gz", tmp_path / "less.nii.gz"
    assert run("segment", image, "--start", labels, "-o", whole) == 0
    before = read_label(whole, read_volume(image)) != 0
    assert (before == (read_label(labels, read_volume(image)) != 0)).all()
    i, j, k = np.argwhere(before)[before.sum() // 2].tolist()
    assert run("segment", image, "--start", labels, "--point", f"{i},{j},{k},-", "-o", less) == 0
    after = read_label(less, read_volume(image)) != 0
    assert not after[i, j, k]
    assert (after <= before).all()
    assert run("segment", image, "--start", less, "--largest-component", "--fill-holes", "-o", whole) == 0
    assert ndimage.label(read_label(whole, read_volume(image)))[1] == 1


def test_a_picture_needs_no_slice_and_background_points_are_kept_out(picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "mask.png"
    assert run("segment", picture, "--point", "40,45", "--point", "100,10,-", "-o", out) == 0
    with Image.open(out) as image:
        mask = np.asarray(image).T
    assert mask.shape == (120, 80)
    assert mask[40, 45] == 255
    assert mask[100, 10] == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{image}", "-o", "{out}"], "nothing says where"),
        (["{image}", "--point", "5,5,3,-", "-o", "{out}"], "nothing says where"),
        (["{image}", "--point", "5,5", "-o", "{out}"], "which of the 12 slices"),
        (["{image}", "--box", "5,5,20,20", "-o", "{out}"], "which of the 12 slices"),
        (["{image}", "--point", "5,5,99", "-o", "{out}"], "outside the image"),
        (["{image}", "--point", "5,5", "--slice", "12", "-o", "{out}"], "--slice 12 lies outside"),
        (["{image}", "--point", "nan,5,3", "-o", "{out}"], "finite"),
        (["{image}", "--box", "5,5,5,20,3,3", "-o", "{out}"], "no area"),
        (["{image}", "--start", "{labels}", "--box", "5,5,20,20,3,3", "-o", "{out}"], "with clicks"),
        (["{image}", "--point", "5,5,3", "--smallest", "-1", "-o", "{out}"], "cubic millimetres"),
        (["{image}", "--point", "5,5,3", "-o", "{out}.jpg"], "must end in"),
        (["{image}", "--point", "5,5,3", "-o", "{folder}/x.png"], "a PNG holds one slice"),
        (["{image}", "--point", "5,5,3", "-o", "{folder}/x.dcm"], "DICOM"),
        (["{image}", "--point", "5,5,3", "-o", "{out}", "--overlay", "{out}"], "must end in .png"),
        (["{image}", "--point", "5,5,3", "-o", "{folder}/nowhere/x.nii"], "no folder"),
        (["{folder}/none.nii", "--point", "5,5,3", "-o", "{out}"], "no file"),
        (["{image}", "--point", "5,5,3", "--backbone", "vit_x", "-o", "{out}"], "lite_medsam"),
        (["{image}", "--point", "5,5,3", "--window", "sharp", "-o", "{out}"], "unknown window"),
        (["{image}", "--point", "5,5,3", "--device", "abacus", "-o", "{out}"], "unknown device"),
        (["{image}", "--point", "5,5,3", "--name", "dragon", "-o", "{out}"], "unknown label"),
        (["{image}", "--point", "5,5,3", "--truth", "{labels}", "-o", "{out}"], "choose one with --label"),
        (["{image}", "--point", "5,5,3", "--truth", "{labels}", "--label", "7", "-o", "{out}"], "only 1, 2"),
        (["{image}", "--point", "5,5,3", "--truth", "{picture}", "-o", "{out}"], "disc.png"),
        (
            ["{image}", "--point", "5,5,3", "--point", "5,5,4", "--slice-only", "-o", "{out}"],
            "several slices",
        ),
    ],
)
def test_what_cannot_be_used_gets_a_sentence_and_status_2(
    words: list[str],
    sentence: str,
    nifti: tuple[Path, Path],
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = {
        "image": nifti[0],
        "labels": nifti[1],
        "picture": picture,
        "out": tmp_path / "m.nii.gz",
        "folder": tmp_path,
    }
    assert run("segment", *(word.format(**names) for word in words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("medsa: ")
    assert sentence in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_gets_a_sentence_and_status_2(
    nifti: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(nifti[0].read_bytes()[:2000])
    assert run("segment", broken, "--point", "5,5,3", "-o", tmp_path / "m.nii.gz") == 2
    assert "broken.nii.gz" in capsys.readouterr().err


def test_unknown_options_end_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["segment", "--colour", "red"])
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_shows_examples_and_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom medsa.cli import main\ntry: main(['segment', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert not {'torch', 'numpy', 'monai'} & set(sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "medsa segment brain.nii.gz --point" in result.stdout


def test_version_is_told() -> None:
    result = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.startswith("medsa 0")


def test_backbones_lists_names_sizes_licences_and_where_weights_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("backbones") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "title", "parameters", "input", "prompts", "licence", "weights"]
    assert {"lite_medsam", "medsam", "vit_b", "vit_h", "vit_l", "vit_t"} == {
        line.split()[0] for line in lines[1:]
    }


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = subprocess.Popen([*COMMAND, "backbones"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.wait(timeout=120)
    assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_ends_with_130_and_leaves_no_file(nifti: tuple[Path, Path], tmp_path: Path) -> None:
    words = ["segment", str(nifti[0]), "--point", "30,40,6", "-o", str(tmp_path / "mask.nii.gz")]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([*COMMAND, *words], stderr=subprocess.PIPE, env=environment)
    while process.poll() is None and "numpy" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)  # before, it is Python that starts: the command imports it when it is at work
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("becomes", [None, ImportError("initialization failed")])
def test_a_ctrl_c_that_a_library_swallows_still_ends_the_command(
    becomes: Exception | None, nifti: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(args: object) -> Segmenter:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if becomes is not None:
                raise becomes from None
        return open_segmenter(args)

    monkeypatch.setattr("medsa.cli_segment.open_segmenter", load)
    words = ["segment", str(nifti[0]), "--point", "30,40,6", "-o", str(tmp_path / "mask.nii.gz")]
    assert main(words) == 130
    assert not list(tmp_path.iterdir())


def drawn(affine: np.ndarray) -> tuple[Volume, np.ndarray]:
    """A black volume of one slice, and a mask in its corner (0, 0)."""
    mask = np.zeros((40, 30), np.uint8)
    mask[:10, :6] = 1
    return Volume(np.zeros((40, 30, 1), np.int16, order="F"), affine, "MR"), mask


@pytest.mark.parametrize(
    ("diagonal", "corner"),
    [((-1, -1, 1), (0.0, 0.0)), ((1, -1, 1), (1.0, 0.0)), ((-1, 1, 1), (0.0, 1.0)), ((1, 1, 1), (1.0, 1.0))],
)
def test_the_overlay_shows_the_patients_left_on_the_right_and_the_front_up(
    diagonal: tuple[float, float, float], corner: tuple[float, float]
) -> None:
    volume, mask = drawn(np.diag([*diagonal, 1.0]).astype(float))
    prompt = Prompt(foreground=np.array([[2.0, 2.0, 0.0]]))
    image = cli_overlay.draw_overlay(volume, 0, Window(0, 100), mask, prompt)
    view = cli_overlay.View(volume)
    width, height = view.pixels
    tinted = np.asarray(image)[:height, :, 0] > 60
    j, i = np.argwhere(tinted).mean(axis=0) / (height, width)
    assert (i > 0.5, j > 0.5) == (corner[0] > 0.5, corner[1] > 0.5)


def test_the_overlay_has_square_pixels_on_the_screen() -> None:
    volume, _ = drawn(np.diag([-1.0, -2.0, 1.0, 1.0]))
    width, height = cli_overlay.View(volume).pixels
    assert width / height == pytest.approx(40 / 60, rel=0.01)
