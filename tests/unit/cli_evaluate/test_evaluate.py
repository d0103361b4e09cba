"""`medsa evaluate`: figures of drawn studies that come out the same again, also after a stop."""

import json
import shutil
import stat

import nibabel
import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import small_sam
from tests.unit.adapters.test_placement import randomise
from tests.unit.cli_evaluate.conftest import SHAPE, WORDS, run

from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.errors import BadInputError
from medsa.evaluation.asking import Protocol
from medsa.evaluation.evaluate import span, summary
from medsa.evaluation.forgetting import DrawnAbdomen
from medsa.sam import build_sam
from medsa.segmenter import Segmenter
from medsa.training.model_card import write_model_card


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


def test_a_study_without_any_object_is_passed_over_and_told(data, tmp_path, capsys) -> None:
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
    assert [one["protocol"]["without"] for one in found] == [0, 1]
    assert "1 of 3 cases have no object that is large enough" in capsys.readouterr().out


def test_where_nothing_was_found_a_corrected_label_is_measured(data, tmp_path, capsys) -> None:
    more, out = tmp_path / "set", tmp_path / "out.json"
    shutil.copytree(data, more)
    for path in (more / "labels").iterdir():
        nibabel.save(nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), nibabel.load(path).affine), path)
    assert run(more, out, *WORDS) == 2
    assert "no case holds an object" in capsys.readouterr().err
    shutil.copytree(data / "labels", more / "labels", dirs_exist_ok=True)
    assert run(more, out, *WORDS) == 0


def _entries(values: dict[tuple[int, str], list[float]]) -> list[dict]:
    return [
        {"patient": patient, "label": label, "numbers": {}, "prompts": {"box": {"dice": value}}}
        for (patient, label), found in values.items()
        for value in found
    ]


def test_a_rare_label_counts_as_much_as_another() -> None:
    entries = _entries({(n, "liver"): [0.9] * 8 for n in range(4)} | {(0, "adrenal gland"): [0.3]})
    dice = summary(entries)["box"]["dice"]
    assert dice["mean"] == pytest.approx(0.6)
    assert (dice["n"], dice["patients"]) == (33, 4)
    assert dice["low"] <= 0.6 <= dice["high"] <= 0.9
    renamed = [{**entry, "patient": 3 - entry["patient"]} for entry in entries]
    assert summary(renamed[::-1]) == summary(entries)


def test_one_patient_has_no_interval() -> None:
    dice = summary(_entries({(0, "liver"): [0.9, 0.7]}))["box"]["dice"]
    assert (dice["mean"], dice["low"], dice["high"]) == pytest.approx((0.8, 0.8, 0.8))
    assert span(dice) == "–"
    assert span({**dice, "patients": 2}) == "0.800 to 0.800"


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
