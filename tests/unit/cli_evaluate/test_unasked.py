"""`medsa evaluate` of versions that take no prompts."""

import json
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from tests.unit.cli_evaluate.conftest import run

from medsa.adapters.inject import adapt
from medsa.adapters.method import MaskHead, read_method
from medsa.adapters.state import save_adapter
from medsa.sam import Sam, build_sam


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
