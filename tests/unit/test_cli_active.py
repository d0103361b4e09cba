"""`medsa campaign` and `medsa report`: what they refuse, and what they write."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tests.unit.adapters.conftest import small_sam

from medsa.active.book import Proposal
from medsa.cli import main
from medsa.server.scoring import book_of


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--strategies", "best"), "there is no strategy 'best'"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--image-size", "0"), "--image-size must be at least 1"),
        (("--method", "nothing"), "unknown method 'nothing'"),
        ((), "there is no file or folder"),
    ],
)
def test_a_campaign_that_cannot_be_says_why(tmp_path, capsys, more, said) -> None:
    assert main(["campaign", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Four small labelled studies."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        mask = np.indices((40, 36, 3))[0] < rng.integers(14, 24)
        values = np.where(mask, 180, 60) + rng.normal(0, 5, mask.shape)
        for kind, content in (("images", values.astype(np.int16)), ("labels", mask.astype(np.uint8))):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(content, np.eye(4)), tmp_path / "data" / kind / f"{seed}.nii.gz")
    return tmp_path / "data"


def test_a_campaign_writes_its_figures_and_a_page_and_is_not_done_twice(
    labelled, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(
        "medsa.sam.load_sam", lambda *_, image_size, **__: small_sam("vit", image_size=image_size)
    )
    monkeypatch.setattr("medsa.active.campaign.CAP", 2)
    out = tmp_path / "out"
    command = ["campaign", str(labelled), "--out", str(out), "--no-gate", "--steps", "1"]
    command += ["--image-size", "64", "--adapter", "none"]
    command += ["--strategies", "random,first", "--seeds", "1", "--start", "1", "--batch", "1"]
    command += ["--budget", "2", "--held-out", "1"]
    assert main(command) == 0
    assert "better than random beyond chance: none" in capsys.readouterr().out
    found = json.loads((out / "campaign.json").read_text(), parse_constant=pytest.fail)
    assert set(found["runs"]) == {"random", "first"}
    assert found["said"]["model"] == "lite_medsam at 64 pixels, decoder_only, from the base"
    assert found["runs"]["first"][0][1]["how"] == "first"
    assert "No strategy is better than random" in (out / "report.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/round*.json")}
    assert len(before) == 3
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/round*.json")} == before
    assert json.loads((out / "campaign.json").read_text()) == found


def test_a_report_tells_what_to_do_before_there_is_anything_and_then_draws_the_curve(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("MEDSA_DATA", str(tmp_path / "data"))
    command = ["report", "--studies", "http://127.0.0.1:1/dicom-web", "--html", str(tmp_path / "curve.html")]
    assert main(command) == 2
    assert "POST /scoring/dice" in capsys.readouterr().err
    book = book_of("http://127.0.0.1:1/dicom-web", "lite_medsam")
    for day in range(1, 8):
        version = "v0001" if day < 4 else "v0002"
        proposal = Proposal(f"2026-01-0{day} 10:00:00", version, "original", {"liver": day / 10})
        book.propose(f"DOE^{day}", "state", proposal)
    assert main(command) == 0
    assert "v0002" in capsys.readouterr().out
    shown = (tmp_path / "curve.html").read_text()
    assert "data:image/png;base64," in shown
    assert "<td>v0002</td><td>4</td><td>0.550</td>" in shown
    assert "DOE" not in shown
