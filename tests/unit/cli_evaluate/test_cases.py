"""Of whom `medsa evaluate` asks: who taught an adapter, official splits, and what a record was begun with."""

import json
import shutil

import nibabel
import numpy as np
from tests.unit.cli_evaluate.conftest import WORDS, run

from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.cli import main
from medsa.evaluation import evaluate as module
from medsa.sam import build_sam
from medsa.training.cases import read_cases
from medsa.training.splits import Splits


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


def test_figures_that_nobody_wants_kept_are_only_printed(data, tmp_path, monkeypatch, capsys) -> None:
    temporary, here = tmp_path / "temporary", tmp_path / "here"
    for folder in (temporary, here):
        folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.chdir(here)
    words = ["evaluate", str(data), "--prompts", "box", "--slices", "1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "box" in printed
    assert "wrote" not in printed
    assert set(tmp_path.rglob("*")) == {temporary, here}
    assert main([*words, "--html", "page.html"]) == 0
    assert "wrote page.html" in capsys.readouterr().out
    assert [path.name for path in here.iterdir()] == ["page.html"]


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
    other, renamed, elsewhere = (tmp_path / name for name in ("other", "renamed", "elsewhere"))
    for folder in (other, renamed, elsewhere):
        shutil.copytree(data, folder)
    corrected = other / "labels" / "doe1.nii.gz"  # a case of the same name
    shutil.copyfile(other / "labels" / "doe0.nii.gz", corrected)
    for path in sorted(renamed.rglob("doe0.nii.gz")):
        path.rename(path.with_name("roe.nii.gz"))
    begun = record.read_bytes()
    for another in (other, renamed):
        assert run(another, out, *words) == 2
        assert "begun with other data" in capsys.readouterr().err
        assert record.read_bytes() == begun
    assert b"doe" not in begun
    measured.clear()
    assert run(elsewhere, out, *words) == 0
    assert len(measured) == 1


def test_a_record_of_another_evaluation_is_left_alone(data, tmp_path, capsys) -> None:
    record = tmp_path / ".out.json.record"
    record.write_text('{"wanted": "else"}\n')
    assert run(data, tmp_path / "out.json", *WORDS) == 2
    assert "other data or options" in capsys.readouterr().err
    assert record.read_text() == '{"wanted": "else"}\n'
