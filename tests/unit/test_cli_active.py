"""`medsa campaign` and `medsa report`: what they refuse, and what they write."""

import pytest

from medsa.active.book import Proposal
from medsa.cli import main
from medsa.server.scoring import book_of


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--strategies", "best"), "there is no strategy 'best'"),
        (("--seeds", "0"), "--seeds must be at least 1"),
        (("--method", "nothing"), "unknown method 'nothing'"),
        ((), "there is no file or folder"),
    ],
)
def test_a_campaign_that_cannot_be_says_why(tmp_path, capsys, more, said) -> None:
    assert main(["campaign", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


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
