"""`medsa evaluate`: figures of drawn studies that come out the same again, also after a stop."""

import json
import shutil
import stat
from operator import itemgetter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import small_sam
from tests.unit.adapters.test_placement import randomise

from medsa.adapters.inject import adapt
from medsa.adapters.method import MaskHead, read_method
from medsa.adapters.state import save_adapter
from medsa.cli import main
from medsa.errors import BadInputError
from medsa.evaluation import evaluate as module
from medsa.evaluation.asking import Protocol
from medsa.evaluation.forgetting import DrawnAbdomen
from medsa.sam import Sam, build_sam
from medsa.segmenter import Segmenter
from medsa.training.cases import read_cases
from medsa.training.model_card import write_model_card
from medsa.training.splits import Splits

SHAPE = (48, 40, 6)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies of a bright block (1) and a dark one (2)."""
    folder = tmp_path_factory.mktemp("set")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(2):
        mask = np.zeros(SHAPE, np.uint8)
        mask[8 + number : 20, 8:20, 1:5] = 1
        mask[28:40, 14:30, 2:5] = 2
        values = np.choose(mask, [80, 160, 20]) + np.random.default_rng(number).normal(0, 5, SHAPE)
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        nibabel.save(
            nibabel.Nifti1Image(values.astype(np.int16), affine), folder / f"images/doe{number}.nii.gz"
        )
        nibabel.save(nibabel.Nifti1Image(mask, affine), folder / f"labels/doe{number}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model with random weights answers."""

    def load(_args: object) -> Segmenter:
        torch.manual_seed(0)
        return Segmenter(build_sam("lite_medsam", image_size=64))

    monkeypatch.setattr("medsa.cli_segment.open_segmenter", load)


def run(data: Path, out: Path, *words: str) -> int:
    return main(["evaluate", str(data), "--json", str(out), *words])


WORDS = ("--prompts", "1,3,box,box0.75,noc", "--slices", "1", "--seeds", "2")


def test_every_prompt_and_metric_is_there_the_same_twice_and_names_nobody(data, tmp_path, capsys) -> None:
    out, again = tmp_path / "out.json", tmp_path / "again.json"
    assert run(data, out, *WORDS) == 0
    assert run(data, again, *WORDS) == 0
    found, same = json.loads(out.read_text()), json.loads(again.read_text())
    assert {name: found[name] for name in found if name != "milliseconds"} == {
        name: same[name] for name in same if name != "milliseconds"
    }
    assert list(found["summary"]) == ["1", "3", "box", "box0.75", "numbers"]
    assert set(found["summary"]["box"]) == {"dice", "iou", "hd95", "nsd"}
    dice = found["summary"]["box0.75"]["dice"]
    assert 0 <= dice["low"] <= dice["mean"] <= dice["high"] <= 1
    assert dice["n"] == 2 * 2 * 2
    assert set(found["summary"]["numbers"]) == {"auc", "noc85", "noc90", "background"}
    assert 1 <= found["summary"]["numbers"]["noc90"]["mean"] <= 10
    assert len(found["cases"]) == 8
    assert found["model"]["precision"] == "float32"  # nothing is compiled here
    assert set(found["labels"]) == {"label 1", "label 2"}
    assert "doe" not in out.read_text()
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "out.json"]
    assert "box0.75" in capsys.readouterr().out


def test_figures_are_added_to_the_versions_model_card(data, tmp_path, capsys) -> None:
    version, out = tmp_path / "version", tmp_path / "out.json"
    save_adapter(adapt(build_sam("lite_medsam", image_size=64), "decoder_only"), version)
    words = ("--prompts", "1,box", "--slices", "1", "--adapter", str(version), "--card", "Two blocks")
    assert run(data, out, *words) == 2
    assert "model_card.md" in capsys.readouterr().err
    card = write_model_card(version, data="nothing", training="none")
    assert run(data, out, *words) == 0
    dice = json.loads(out.read_text())["summary"]["box"]["dice"]
    text = card.read_text()
    assert "### Two blocks\n" in text
    assert f"| box | {dice['mean']:.3f} | {dice['low']:.3f} to {dice['high']:.3f} | 4 |" in text
    assert "`medsa evaluate --slices 1 --seeds 1` on 2 cases:" in text


def test_patients_who_taught_an_adapter_say_nothing_about_it(data, tmp_path, capsys) -> None:
    version, out = tmp_path / "run" / "candidate", tmp_path / "out.json"
    splits, model = (
        Splits(tmp_path / "splits.json"),
        adapt(build_sam("lite_medsam", image_size=64), "decoder_only"),
    )
    splits.assign(case.patient for case in read_cases(data))
    words = ("--prompts", "box", "--slices", "1", "--adapter", str(version))
    save_adapter(
        model, version, studies={"training": [splits.hashed("doe1")], "validation": [splits.hashed("doe0")]}
    )
    assert run(data, out, *words) == 0
    assert "1 of 2 cases are of patients who taught it: left out" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["protocol"]["cases"], found["protocol"]["taught"]) == (1, False)
    assert run(data, out, *words, "--taught") == 0
    every = json.loads(out.read_text())
    assert (every["protocol"]["cases"], every["protocol"]["taught"]) == (2, True)
    assert found["cases"] == [
        entry for entry in every["cases"] if entry["case"] == 0
    ]  # the other one is left
    save_adapter(model, version, studies={"training": [splits.hashed(f"doe{n}") for n in range(2)]})
    assert run(data, out, *words) == 2
    assert "all 2 cases are of patients who taught" in capsys.readouterr().err
    copied = tmp_path / "elsewhere" / "run" / "candidate"
    shutil.copytree(version, copied)
    assert run(data, out, *words[:-1], str(copied)) == 0
    assert json.loads(out.read_text())["protocol"]["cases"] == 2


def test_a_study_without_any_object_is_passed_over(data, tmp_path) -> None:
    assert run(data, tmp_path / "without.json", *WORDS) == 0
    more = tmp_path / "set"
    shutil.copytree(data, more)
    image = nibabel.load(more / "images" / "doe1.nii.gz")
    nibabel.save(image, more / "images" / "healthy.nii.gz")
    nibabel.save(
        nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), image.affine), more / "labels" / "healthy.nii.gz"
    )
    assert run(more, tmp_path / "with.json", *WORDS) == 0
    found = [json.loads((tmp_path / name).read_text()) for name in ("without.json", "with.json")]
    assert found[0]["summary"] == found[1]["summary"]


def test_a_stopped_evaluation_goes_on_where_it_was(data, tmp_path, monkeypatch) -> None:
    whole, out, record = tmp_path / "whole.json", tmp_path / "out.json", tmp_path / ".out.json.record"
    assert run(data, whole, *WORDS) == 0
    monkeypatch.setattr(module, "CASES", 1)
    measured = []
    measure = module._measured

    def counted(*args: object) -> object:
        if measured:  # in the second case
            raise KeyboardInterrupt
        measured.append(1)
        return measure(*args)

    monkeypatch.setattr(module, "_measured", counted)
    assert run(data, out, *WORDS) == 130
    assert record.is_file()
    assert not out.exists()
    with record.open("a") as file:
        file.write('{"part": 1, "entr')  # as a kill leaves it
    measured.clear()
    assert run(data, out, *WORDS) == 0
    assert len(measured) == 1
    assert json.loads(out.read_text())["cases"] == json.loads(whole.read_text())["cases"]
    assert not record.exists()


def test_controls_are_the_same_prompts_of_other_models_and_on_other_things(
    data, tmp_path, monkeypatch, capsys
) -> None:
    def load(_args: object) -> Segmenter:
        return Segmenter(adapt(small_sam("tiny_vit"), "med_sa_2d").eval())

    monkeypatch.setattr("medsa.cli_segment.open_segmenter", load)
    monkeypatch.setattr("medsa.evaluation.forgetting.FORGETTING", (DrawnAbdomen((48, 48, 4)),))
    wrong, out, html = tmp_path / "wrong", tmp_path / "out.json", tmp_path / "out.html"
    save_adapter(randomise(adapt(small_sam("tiny_vit"), "med_sa_2d")), wrong, labels=["else"])
    words = ("--prompts", "1,box", "--controls", "all", "--wrong", str(wrong), "--html", str(html))
    assert run(data, out, "--labels", "1", "--slices", "1", *words) == 0
    found = json.loads(out.read_text())
    controls = found["controls"]
    assert list(controls) == ["off", "wrong", "forgetting", "forgetting, off", "forgetting, wrong"]
    assert controls["off"]["box"] == found["summary"]["box"]  # fresh adapters change nothing
    assert controls["wrong"]["box"] != found["summary"]["box"]
    assert controls["forgetting"]["1"]["dice"]["n"] > len(found["cases"]) == 2
    assert all("control" not in entry for entry in found["cases"])
    assert "forgetting, off: 1 0." in capsys.readouterr().out
    assert "forgetting, wrong" in html.read_text()


def test_a_model_by_itself_does_not_obey_clicks(data, tmp_path) -> None:
    """One with random weights that nothing corrects does not get better with clicks."""
    raw, helped = tmp_path / "raw.json", tmp_path / "helped.json"
    words = ("--prompts", "10", "--slices", "1", "--labels", "1", "--controls", "none")
    assert run(data, raw, "--raw", *words) == 0
    assert run(data, helped, *words) == 0
    one, other = (json.loads(path.read_text()) for path in (raw, helped))
    assert one["summary"]["10"]["dice"]["mean"] < other["summary"]["10"]["dice"]["mean"] - 0.2
    assert "background" not in one["summary"]["numbers"]
    assert one["protocol"]["raw"] is True


def test_in_slabs_only_models_with_depth_answer_otherwise(data, tmp_path, monkeypatch) -> None:
    found = {}
    for method in ("med_sa", "med_sa_2d"):
        torch.manual_seed(0)
        model = randomise(adapt(build_sam("lite_medsam", image_size=64), method).eval())
        monkeypatch.setattr("medsa.cli_segment.open_segmenter", lambda _, model=model: Segmenter(model))
        for words in ((), ("--slabs",)):
            out = tmp_path / f"{method}{len(words)}.json"
            assert run(data, out, "--prompts", "1", "--slices", "1", "--controls", "none", *words) == 0
            found[method, words] = json.loads(out.read_text())
            assert found[method, words]["protocol"]["slabs"] is bool(words)
    depth, flat = (
        found[method, ()]["summary"]["1"] == found[method, ("--slabs",)]["summary"]["1"]
        for method in ("med_sa", "med_sa_2d")
    )
    assert (depth, flat) == (False, True)


def test_small_images_are_enlarged_when_asked(data, tmp_path, capsys) -> None:
    words = ("--prompts", "box", "--slices", "1", "--controls", "none")
    out, html = tmp_path / "large.json", tmp_path / "large.html"
    assert run(data, out, *words, "--pixels", "96", "--html", str(html)) == 0
    large = json.loads(out.read_text())
    assert large["protocol"]["pixels"] == 96
    assert "small ones enlarged to 96 pixels" in html.read_text()
    assert run(data, out, *words, "--pixels", "48") == 0  # which they have
    as_they_are = json.loads(out.read_text())
    assert run(data, out, *words) == 0
    plain = json.loads(out.read_text())
    assert as_they_are["summary"] == plain["summary"] != large["summary"]
    assert [entry["slice"] for entry in large["cases"]] == [entry["slice"] for entry in plain["cases"]]
    assert run(data, out, *words, "--pixels", "-1") == 2
    assert "--pixels must be 0 (as they are) to 2048" in capsys.readouterr().err


@pytest.fixture
def unasked(monkeypatch, tmp_path) -> Path:
    """A version that takes no prompts and knows one of the two blocks, and another label."""

    def load(_name: str, **_: object) -> Sam:
        torch.manual_seed(0)
        return build_sam("lite_medsam", image_size=64)

    monkeypatch.setattr("medsa.sam.load_sam", load)
    method = read_method("ma_sam").model_copy(update={"head": MaskHead(classes=3)})
    torch.manual_seed(0)
    save_adapter(adapt(load(""), method), tmp_path / "version", labels=("label 1", "elsewhere"))
    return tmp_path / "version"


def test_a_version_without_prompts_is_measured_on_the_same_objects(data, unasked, tmp_path, capsys) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    assert run(data, out, "--adapter", str(unasked), "--slices", "1", "--html", str(page)) == 0
    found = json.loads(out.read_text())
    assert [(entry["label"], entry["case"]) for entry in found["cases"]] == [
        ("label 1", 0), ("label 2", 0), ("label 1", 1), ("label 2", 1),
    ]  # fmt: skip
    assert list(found["summary"]) == ["none"]
    assert found["labels"]["label 2"]["none"]["dice"]["mean"] == 0  # it was not taught that one
    assert found["protocol"]["prompts"] == "none"
    assert found["model"]["adapter"]
    assert "none" in capsys.readouterr().out
    assert "medsa evaluate" in page.read_text()
    asked = tmp_path / "asked.json"
    assert run(data, asked, "--prompts", "1", "--slices", "1") == 0
    place = itemgetter("case", "label", "slice")
    assert set(map(place, json.loads(asked.read_text())["cases"])) == set(map(place, found["cases"]))


@pytest.mark.parametrize(
    "words",
    [
        ["--raw"],
        ["--controls", "all"],
        ["--wrong", "x"],
        ["--seeds", "2"],
        ["--method", "ma_sam"],
        ["--prompts", "1"],
        ["--deepest"],
        ["--anywhere"],
        ["--slabs"],
        ["--unnamed"],
    ],
)
def test_what_a_version_without_prompts_cannot_be_told_is_refused(
    data, unasked, tmp_path, words, capsys
) -> None:
    assert run(data, tmp_path / "out.json", "--adapter", str(unasked), *words) == 2
    assert "takes no prompts" in capsys.readouterr().err


def test_a_downloaded_data_set_is_measured_on_its_official_test_split(tmp_path, capsys) -> None:
    for name, kind in (("0001", "Tr"), ("0400", "Va"), ("0500", "Va"), ("0510", "Va")):
        mask = np.zeros((24, 20, 2), np.uint8)
        mask[4:12, 4:12, :], mask[14:20, 6:16, 1] = 6, 1
        for folder, values in (("images", mask * 30.0), ("labels", mask)):
            path = tmp_path / f"{folder}{kind}" / f"amos_{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    out = tmp_path / "out.json"
    words = ("--dataset", "amos22_ct", "--labels", "liver", "--prompts", "box", "--slices", "1")
    assert run(tmp_path, out, *words) == 0
    found = json.loads(out.read_text())
    assert (found["protocol"]["cases"], list(found["labels"])) == (2, ["liver"])
    assert found["protocol"]["window"] == "soft-tissue"
    assert run(tmp_path, out, *words, "--split", "all", "--window", "0,200") == 0
    assert json.loads(out.read_text())["protocol"]["cases"] == 3
    assert run(tmp_path, out, *words, "--split", "C") == 2
    assert "no split 'C': take one of train, test, or all" in capsys.readouterr().err
    assert run(tmp_path, out, "--split", "test") == 2
    assert "--split is for a --dataset" in capsys.readouterr().err


def test_other_cases_do_not_go_on_with_a_record(data, tmp_path, monkeypatch, capsys) -> None:
    out, record = tmp_path / "out.json", tmp_path / ".out.json.record"
    monkeypatch.setattr(module, "CASES", 1)
    measure, measured = module._measured, []

    def stopped(*args: object) -> object:
        if measured:
            raise KeyboardInterrupt
        measured.append(1)
        return measure(*args)

    monkeypatch.setattr(module, "_measured", stopped)
    words = ("--prompts", "box", "--slices", "1", "--controls", "none")
    assert run(data, out, *words) == 130
    other, renamed = tmp_path / "other", tmp_path / "renamed"
    shutil.copytree(data, other)  # as many cases of the same names
    shutil.copytree(data, renamed)
    for path in sorted(renamed.rglob("doe0.nii.gz")):
        path.rename(path.with_name("roe.nii.gz"))
    begun = record.read_bytes()
    for another in (other, renamed):
        assert run(another, out, *words) == 2
        assert "begun with other data" in capsys.readouterr().err
        assert record.read_bytes() == begun
    assert b"doe" not in begun
    measured.clear()
    assert run(data, out, *words) == 0


def test_a_record_of_another_evaluation_is_left_alone(data, tmp_path, capsys) -> None:
    record = tmp_path / ".out.json.record"
    record.write_text('{"wanted": "else"}\n')
    assert run(data, tmp_path / "out.json", *WORDS) == 2
    assert "other data or options" in capsys.readouterr().err
    assert record.read_text() == '{"wanted": "else"}\n'


def test_labels_are_told_to_a_model_that_knows_them_unless_unnamed(data, tmp_path, monkeypatch) -> None:
    torch.manual_seed(0)
    model = adapt(build_sam("lite_medsam", image_size=64), "decoder_prompt")
    model.trained_prompts = ("point", "box", "mask")
    model.learn_names(["label 1"]).data.normal_()
    monkeypatch.setattr("medsa.cli_segment.open_segmenter", lambda _args: Segmenter(model))
    told, silent = [], []
    for words, found in (((), told), (("--unnamed",), silent)):
        out = tmp_path / f"{len(words)}.json"
        assert run(data, out, "--prompts", "1,box", "--slices", "1", "--controls", "none", *words) == 0
        figures = json.loads(out.read_text())
        assert figures["protocol"]["named"] is not bool(words)
        found += [(entry["label"], entry["prompts"]) for entry in figures["cases"]]
    unlike = {one[0] for one, other in zip(told, silent, strict=True) if one != other}
    assert unlike == {"label 1"}


def test_volumes_are_asked_for_in_space_and_shown_on_a_page(data, tmp_path) -> None:
    out, html = tmp_path / "out.json", tmp_path / "out.html"
    words = ("--volumes", "--prompts", "1,2,box", "--labels", "2", "--deepest", "--html", str(html))
    assert run(data, out, *words) == 0
    shown = html.read_text()
    assert all(word in shown for word in ("data:image/png;base64,", "label 2", "volumes", "surface Dice"))
    assert "://" not in shown
    found = json.loads(out.read_text())
    assert [entry["slice"] for entry in found["cases"]] == [None, None]
    assert set(found["labels"]) == {"label 2"}
    assert found["summary"]["2"]["dice"]["mean"] >= 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--prompts", "1,boxes"), "unknown prompt 'boxes'"),
        (("--prompts", "11"), "unknown prompt '11'"),
        (("--prompts", ","), "no prompt"),
        (("--seeds", "0"), "at least 1"),
        (("--tolerance", "nan"), "--tolerance"),
        (("--html", "nowhere/out.html"), "no folder"),
        (("--html", "out.txt"), "must end in .html"),
        (("--labels", "liver"), "no label is called"),
        (("--raw", "--volumes"), "knows no volumes"),
        (("--afresh",), "goes with --raw"),
        (("--card", "title"), "goes with --adapter"),
        (("--controls", "of"), "unknown control 'of'"),
        (("--controls", "off"), "no adapter"),
        (("--window", "nowhere"), "unknown window"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(data, tmp_path, words, says, capsys) -> None:
    assert run(data, tmp_path / "out.json", *words) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_protocol_is_read_from_its_words() -> None:
    found = Protocol.of("10, 1,box0.5,box")
    assert (found.clicks, found.boxes, found.noc) == ((1, 10), (1.0, 0.5), False)
    with pytest.raises(BadInputError):
        Protocol.of("box1.5")
