"""A comparison on drawn studies: what is trained and asked, kept, gone on with, and what its report shows."""

import json
import shutil
import stat
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.datasets.test_datasets import prostate
from tests.unit.training.test_train import CASES

from medsa.cli import main
from medsa.comparison import compare as module
from medsa.comparison.cards import write_cards
from medsa.comparison.compare import Comparison, Data
from medsa.comparison.plan import Plan
from medsa.errors import BadInputError, CancelledError, ConfigurationError
from medsa.evaluation.evaluate import span, summary
from medsa.sam import Sam
from medsa.training.length import Length

__all__ = ["one_thread"]

ASKED = {"prompts": "1,2,box", "slices": 1, "deepest": True}
CONTENT = {
    "title": "small",
    "budget": {"steps": 2},
    "asked": ASKED,
    "entrants": [
        "sam",
        "decoder_only",
        {"method": "ma_sam", "change": {"encoder": {"low_rank": {"rank": 2}}}},
        "unet",
    ],
}
DATA = Data(CASES[:2], CASES[2:], {1: "near", 2: "far"})


def comparison(folder: Path, content: dict = CONTENT, **options: object) -> Comparison:
    return Comparison(
        Plan.model_validate(content), DATA, folder, load=lambda *_, **__: small_sam("tiny_vit"), **options
    )


def test_all_entrants_are_trained_and_asked_alike_and_nothing_is_done_twice(tmp_path, monkeypatch) -> None:
    results = comparison(tmp_path).go()
    assert [result.steps for result in results] == [0, 2, 2, 2]
    asked = [{(e["case"], e["label"], e["slice"]) for e in result.entries} for result in results]
    assert asked == [asked[0]] * 4
    assert len(asked[0]) == 4
    assert set(results[1].entries[0]["prompts"]) == {"1", "2", "box"}
    assert set(results[2].entries[0]["prompts"]) == set(results[3].entries[0]["prompts"]) == {"none"}
    assert results[0].counts["trained"] == 0
    assert results[3].counts["trained"] == results[3].counts["total"] > 0
    for name in ("train", "train_classes", "evaluate", "evaluate_unasked"):
        monkeypatch.setattr(module, name, None)
    again = comparison(tmp_path).go()
    assert [result.entries for result in again] == [result.entries for result in results]
    assert not list(tmp_path.rglob("record"))


def test_one_seed_after_another_and_who_learns_nothing_is_asked_once(tmp_path) -> None:
    begun = []
    content = {**CONTENT, "entrants": ["sam", "decoder_only", "unet"], "seeds": 2, "budget": {"steps": 1}}
    results = comparison(tmp_path, content, told=lambda who, *_: begun.append(who)).go()
    assert [(result.entrant.name, result.seed) for result in results] == [
        ("sam", 0), ("decoder_only", 0), ("decoder_only", 1), ("unet", 0), ("unet", 1)
    ]  # fmt: skip
    order = [who for who, before in zip(begun, [None, *begun], strict=False) if who != before]
    assert order == ["sam", "decoder_only", "unet", "decoder_only", "unet"]


def test_seeds_may_be_added_and_left_out(tmp_path) -> None:
    content = {**CONTENT, "entrants": ["decoder_only"], "budget": {"steps": 1}}
    one = comparison(tmp_path, content).go()
    begun = []
    two = comparison(
        tmp_path, {**content, "seeds": 2}, told=lambda who, what, part: begun.append((what, part))
    ).go()
    assert begun.count(("training", 1.0)) == 1
    assert [result.entries for result in two[:1]] == [result.entries for result in one]
    assert [result.entries for result in comparison(tmp_path, content).go()] == [one[0].entries]


def test_all_are_trained_and_asked_at_the_wanted_input_size(tmp_path) -> None:
    content = {**CONTENT, "image_size": 64, "entrants": ["decoder_only", "sam"]}
    asked = []

    def load(*_: object, image_size: int | None, **__: object) -> Sam:
        asked.append(image_size)
        return small_sam("tiny_vit", image_size=image_size)

    found = Comparison(Plan.model_validate(content), DATA, tmp_path, load=load)
    assert all(len(result.entries) == 4 for result in found.go())
    assert asked == [64]
    card = json.loads((tmp_path / "decoder-only" / "candidate" / "card.json").read_text())
    assert card["image_size"] == 64
    with pytest.raises(BadInputError, match="other image_size"):
        comparison(tmp_path)


def test_a_stopped_comparison_comes_to_the_same_figures(tmp_path) -> None:
    content = CONTENT | {"entrants": ["decoder_only", "unet"]}
    whole = comparison(tmp_path / "whole", content).go()
    for after in (4, 9):  # while the first learns, and later
        asked = iter(range(10**6))
        with pytest.raises(CancelledError):
            comparison(
                tmp_path / "halved", content, stop=lambda asked=asked, at=after: next(asked) >= at
            ).go()
    again = comparison(tmp_path / "halved", content).go()
    assert [[e["prompts"] for e in r.entries] for r in again] == [
        [e["prompts"] for e in r.entries] for r in whole
    ]


def test_what_was_trained_otherwise_is_not_measured_as_another_one(tmp_path) -> None:
    def low_rank(rank: int) -> dict:
        return CONTENT | {
            "entrants": [{"method": "lora", "change": {"encoder": {"low_rank": {"rank": rank}}}}]
        }

    measuring = []
    made = comparison(
        tmp_path,
        low_rank(2),
        told=lambda _who, what, _part: measuring.append(what == "measuring"),
        stop=lambda: any(measuring) or (tmp_path / "lora/trained.json").is_file(),
    )
    with pytest.raises(CancelledError):
        made.go()
    assert not (tmp_path / "lora/result.json").exists()
    with pytest.raises(BadInputError, match="trained otherwise"):
        comparison(tmp_path, low_rank(4)).go()
    path = tmp_path / "lora/trained.json"
    trained = path.read_text()
    path.write_text(
        trained.replace('"paper": "', '"paper": "an earlier ')
    )  # of before a method's file changed
    with pytest.raises(BadInputError, match="trained otherwise"):
        comparison(tmp_path, low_rank(2)).go()
    path.write_text(trained)
    assert comparison(tmp_path, low_rank(2)).go()[0].steps == 2


def test_an_entrant_may_have_settings_of_its_own(tmp_path) -> None:
    def entrants(**settings: float) -> dict:
        return CONTENT | {
            "entrants": ["gl_med_sa", {"name": "fast", "method": "gl_med_sa", "settings": settings}]
        }

    slow, fast = comparison(tmp_path, entrants(adapter_rate=0.1)).go()
    rates = [json.loads((tmp_path / name / "config.json").read_text())["settings"]["adapter_rate"]
             for name in ("gl-med-sa", "fast")]  # fmt: skip
    assert rates == [1e-3, 0.1]
    assert slow.entries != fast.entries
    with pytest.raises(BadInputError, match="trained otherwise"):
        comparison(tmp_path, entrants(adapter_rate=0.2)).go()
    for name in ("trained.json", "result.json"):  # as they were before entrants had settings
        path = tmp_path / "fast" / name
        known = json.loads(path.read_text())
        del known["spec"]["settings"]
        path.write_text(json.dumps(known))
    with pytest.raises(BadInputError, match="trained otherwise"):
        comparison(tmp_path, entrants(adapter_rate=0.1)).go()
    assert comparison(tmp_path, entrants()).go()[1].steps == 2


def test_a_change_of_the_warm_starts_own_method_is_made(tmp_path) -> None:
    changed = {"method": "decoder_prompt", "change": {"trains": ["prompt_encoder.point_embeddings"]}}
    comparison(tmp_path, CONTENT | {"warm_start": {"steps": 1}, "entrants": [changed]}).go()
    card = json.loads((tmp_path / "decoder-prompt/candidate/card.json").read_text())
    assert card["method"]["trains"] == ["prompt_encoder.point_embeddings"]
    assert "mask_decoder" in " ".join(card["method"]["carries"])


def test_a_moved_comparison_goes_on(tmp_path) -> None:
    content = CONTENT | {"warm_start": {"steps": 1}, "entrants": ["decoder_only"], "budget": {"steps": 4}}
    asked = iter(range(10**6))
    learning = []
    with pytest.raises(CancelledError):
        comparison(
            tmp_path / "first",
            content,
            told=lambda who, what, _: learning.append((who, what) == ("decoder_only", "training")),
            stop=lambda: any(learning) and next(asked) >= 1,
        ).go()
    assert (tmp_path / "first/decoder-only/checkpoint").is_dir()
    (tmp_path / "first").rename(tmp_path / "second")
    assert comparison(tmp_path / "second", content).go()[0].steps == 4


def test_the_steps_of_a_decoder_that_learnt_before_a_stop_are_told(tmp_path) -> None:
    content = CONTENT | {"entrants": ["lora"], "settings": "short", "budget": {"steps": 5}}
    with pytest.raises(CancelledError):
        comparison(tmp_path, content, stop=(tmp_path / "lora/decoder/trained.json").is_file).go()
    assert not (tmp_path / "lora/trained.json").exists()
    assert comparison(tmp_path, content).go()[0].steps == 5


def test_each_seeds_card_has_its_own_figures_and_stays(tmp_path) -> None:
    content = CONTENT | {"entrants": ["decoder_only", "unet"], "seeds": 2, "warm_start": {"steps": 1}}
    made = comparison(tmp_path, content)
    results = made.go()
    write_cards(made, results)
    cards = [made.candidate(result.entrant, result.seed) / "model_card.md" for result in results]
    for card, result in zip(cards, results, strict=True):
        dice = next(iter(summary(result.entries).values()))["dice"]
        assert f"| {dice['mean']:.3f} | {span(dice)} | 4 |" in card.read_text()
        assert ("after a shared warm start" in card.read_text()) is (result.entrant.name == "decoder_only")
        card.write_text(card.read_text() + "more")
    write_cards(made, results)
    assert all(card.read_text().endswith("more") for card in cards)


def test_a_folder_of_another_comparison_is_left_alone(tmp_path) -> None:
    content = CONTENT | {"entrants": ["sam"]}
    comparison(tmp_path, content).go()
    with pytest.raises(BadInputError, match="other budget"):
        comparison(tmp_path, content | {"budget": {"steps": 3}})
    path = tmp_path / "plan.json"
    known = json.loads(path.read_text())
    for name, value in (("files", "of others"), ("window", "lung"), ("settings' values", {"rate": 1})):
        path.write_text(json.dumps(known | {name: value}))
        with pytest.raises(BadInputError, match=f"other {name}"):
            comparison(tmp_path, content)
    earlier = known
    del earlier["image_size"], earlier["asked"]["slabs"], earlier["files"]
    path.write_text(json.dumps(earlier))
    comparison(tmp_path, content)  # of before there were these
    changed = {"name": "SAM", "method": "decoder_only"}
    with pytest.raises(BadInputError, match="another name"):
        comparison(tmp_path, content | {"entrants": [changed]}).go()
    for damaged in (path.read_text()[:-9], "[]", "{}"):
        path.write_text(damaged)
        with pytest.raises(ConfigurationError, match=r"plan.json is damaged"):
            comparison(tmp_path, content)


def test_a_warm_start_is_trained_once_and_its_time_is_given_to_those_without_it(tmp_path) -> None:
    content = CONTENT | {
        "warm_start": {"steps": 3},
        "entrants": [
            "decoder_prompt",
            "med_sa_2d",
            "unet",
            {"name": "cold", "method": "decoder_only", "start": "none"},
        ],
    }
    told = []
    results = comparison(tmp_path, content, told=lambda who, what, part: told.append((who, what, part))).go()
    assert [result.steps for result in results] == [2, 2, 5, 5]
    assert told.count(("warm start", "training", 1.0)) == 1
    plan = Plan.model_validate(content)
    assert plan.length_of(plan.entrants[0]) == Length(steps=2)
    card = json.loads((tmp_path / "med-sa-2d" / "candidate" / "card.json").read_text())
    assert card["method"]["carries"]


def test_a_warm_start_in_another_unit_is_given_as_it_came_out(tmp_path) -> None:
    content = CONTENT | {
        "budget": {"minutes": 1e-4},
        "warm_start": {"steps": 3},
        "entrants": ["unet", "decoder_only"],
    }
    made = comparison(tmp_path, content)
    made.go()
    (unet, decoder), warm = (
        made.plan.entrants,
        json.loads((tmp_path / "_warm-start/trained.json").read_text()),
    )
    took = Length(minutes=warm["seconds"] / 60, steps=3)
    assert made.plan.length_of(unet, took) == Length(minutes=1e-4 + warm["seconds"] / 60)
    assert made.plan.length_of(decoder, took) == Length(minutes=1e-4)
    learnt = json.loads((tmp_path / "unet/trained.json").read_text())
    assert learnt["seconds"] >= 0.9 * warm["seconds"]
    with pytest.raises(ValueError, match="in epochs, so the warm start must be"):
        Plan.model_validate(content | {"budget": {"epochs": 2}})


def test_no_name_of_an_entrant_is_the_folder_of_another_run(tmp_path) -> None:
    entrants = [{"name": name, "method": "decoder_only"} for name in ("warm start", "rank", "rank 1")]
    content = CONTENT | {"warm_start": {"steps": 3}, "entrants": entrants, "seeds": 2}
    results = comparison(tmp_path, content).go()
    assert [result.steps for result in results] == [2] * 6
    assert len(list(tmp_path.rglob("trained.json"))) == 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three drawn studies with two labels, as files."""
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for case in CASES:
        volume, mask, _ = case.read()
        for kind, values in (("images", volume.voxels), ("labels", mask)):
            image = nibabel.Nifti1Image(np.asarray(values), np.eye(4))
            nibabel.save(image, tmp_path / "set" / kind / f"Jane Roe {case.id}.nii.gz")
    return tmp_path / "set"


def test_the_command_writes_a_report_of_its_own_that_names_nobody(
    folder, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("medsa.sam.load_sam", lambda *_, **__: small_sam("tiny_vit"))
    plan = tmp_path / "plan.yaml"
    others = {"nnUNet": {"none": {"average": 0.8}}}
    entrants = [{"method": "decoder_only", "paper": {"box": {"average": {"iou": 0.7}}}}, "unet"]
    plan.write_text(json.dumps(CONTENT | {"entrants": entrants, "others": others, "seeds": 2}))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "plan"
    words = ["compare", str(plan), "--data", str(folder), "--steps", "1"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert "decoder_only" in printed.out
    found = json.loads((out / "report.json").read_text())
    assert found["cases"]["training"] + found["cases"]["held out"] == 4
    assert [line["steps"] for line in found["entrants"]] == [[1, 1], [1, 1]]
    assert len(found["entrants"][0]["seeds"]) == 2
    text = (out / "report.md").read_text()
    assert "| nnUNet | no prompt | average | Dice | 0.800 | not run |" in text
    assert "| decoder_only | box | average | IoU | 0.700 |" in text
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert "://" not in page  # as base64, "http" alone may occur in a picture
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"Jane Roe" not in written
    for path in out.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".md", ".html"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert main([*words, "--no-overlays"]) == 0
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 4


def test_the_same_command_in_another_folder_comes_to_the_same_figures(folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medsa.sam.load_sam", lambda *_, **__: small_sam("tiny_vit"))
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(CONTENT | {"entrants": ["decoder_only"], "share": 0.5}))
    found = []
    for name in ("one", "other"):
        words = ["compare", str(plan), "--data", str(folder), "--output", str(tmp_path / name)]
        assert main([*words, "--no-overlays"]) == 0
        entrant = json.loads((tmp_path / name / "report.json").read_text())["entrants"][0]
        found.append({key: entrant[key] for key in ("summary", "labels")})
    assert found[0] == found[1]
    assert len({path.read_bytes() for path in tmp_path.glob("*/splits.json.key")}) == 2


def test_the_same_plan_on_other_data_leaves_what_was_done_alone(
    folder, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("medsa.sam.load_sam", lambda *_, **__: small_sam("tiny_vit"))
    monkeypatch.chdir(tmp_path)
    plan, other = tmp_path / "plan.yaml", tmp_path / "other"
    plan.write_text(json.dumps(CONTENT | {"entrants": ["decoder_only"], "share": 0.5}))
    for path in folder.rglob("*.nii.gz"):
        copy = other / path.relative_to(folder).with_name(path.name.replace("Jane", "John"))
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    words = ["compare", str(plan), "--no-overlays", "--data"]
    assert main([*words, str(folder)]) == 0
    report = (tmp_path / "runs/plan/report.json").read_bytes()
    assert main([*words, str(other)]) == 2
    assert "holds a comparison with other cases" in capsys.readouterr().err
    assert (tmp_path / "runs/plan/report.json").read_bytes() == report
    monkeypatch.setattr(module, "train", None)
    assert main([*words, str(folder)]) == 0
    assert (tmp_path / "runs/plan/report.json").read_bytes() == report


def test_splits_that_are_no_train_and_test_are_taken_together(tmp_path, monkeypatch) -> None:
    """The sites of the prostates: those between the first and the last count, too."""
    monkeypatch.setattr("medsa.sam.load_sam", lambda *_, **__: small_sam("tiny_vit"))
    prostate(tmp_path / "set")
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps(CONTENT | {"entrants": ["sam"], "data": "prostate", "share": 0.5}))
    words = ["compare", str(plan), "--data", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    assert main([*words, "--no-overlays"]) == 0
    cases = json.loads((tmp_path / "out/report.json").read_text())["cases"]
    assert cases["training"] + cases["held out"] == 6


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        ("title: x", (), "budget: Field required"),
        ("- a", (), "holds no plan"),
        ("{", (), "no YAML"),
        ("{title: x, budget: {minutes: 1, steps: 1}, entrants: [sam]}", (), "one of minutes, steps"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam, null]}", (), "or a mapping"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam], asked: {prompts: noc}}", (), "keeps no mask"),
        ("{title: x, budget: {minutes: 1}, entrants: [samm]}", (), "unknown method 'samm'"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam, sam]}", (), "two entrants are called 'sam'"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam], backbone: x}", (), "unknown backbone"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam], asked: {prompts: 1;2}}", (), "unknown prompt"),
        ("{title: x, budget: {minutes: 1}, entrants: [{method: ma_sam, change: {dept: 3}}]}", (), "dept"),
        ("{title: x, budget: {minutes: 1}, entrants: [{method: lora, settings: {rat: 3}}]}", (), "rat"),
        ("{title: x, budget: {steps: 1}, entrants: [sam], warm_start: {steps: 1, method: msa}}", (), "place"),
        ("{title: x, budget: {steps: 1}, entrants: [{method: unet, train: false}]}", (), "knows no label"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam]}", ("--steps", "0"), "greater than 0"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam]}", ("--seeds", "0"), "greater than 0"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam]}", ("--image-size", "100"), "multiple of 32"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam]}", ("--dataset", "nowhere"), "unknown data set"),
        ("{title: x, budget: {minutes: 1}, entrants: [sam]}", ("--labels", "liver"), "no label is called"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_a_sentence(folder, tmp_path, capsys, content, words, says) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(content)
    out = tmp_path / "out"
    assert main(["compare", str(plan), "--data", str(folder), "--output", str(out), *words]) == 2
    assert says in capsys.readouterr().err
