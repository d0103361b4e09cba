"""Who has which study outlives the server that offered it."""

import stat
from pathlib import Path

import pytest

from medsa.server.leases import Leases


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "active" / "offers.json"


def test_what_was_offered_stays_offered_when_the_server_starts_anew(path) -> None:
    clock = Clock()
    leases = Leases(1800, path, clock)
    for clock.now, image in enumerate("abc"):
        leases.offer(image, "ann")
    leases.end("b")
    again = Leases(1800, path, clock)
    assert again.held() == ["a", "c"]
    assert list(again.free("abc", "bob").images) == ["b"]
    assert list(again.free("ac", "ann").images) == ["a"]
    clock.now = 1801
    assert Leases(1800, path, clock).held() == ["c"]
    assert b"ann" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', '{"a": ["ann", "late"]}'])
def test_a_file_that_says_nothing_offers_everything_and_is_told_of(path, text, caplog) -> None:
    path.parent.mkdir()
    path.write_text(text)
    leases = Leases(1800, path)
    assert leases.held() == []
    assert "offers.json" in caplog.text
    leases.offer("a", "ann")
    assert Leases(1800, path).held() == ["a"]


def test_a_clock_that_was_put_back_keeps_nobody_out(path) -> None:
    clock = Clock()
    clock.now = 1e9
    Leases(1800, path, clock).offer("a", "ann")
    clock.now = 0
    assert list(Leases(1800, path, clock).free("a", "bob").images) == ["a"]


def test_a_disk_that_takes_nothing_keeps_nobody_from_their_next_study(tmp_path, caplog) -> None:
    (tmp_path / "active").write_text("a file where the folder should be")
    leases = Leases(1800, tmp_path / "active" / "offers.json")
    leases.offer("a", "ann")
    assert list(leases.free("ab", "bob").images) == ["b"]
    leases.end("a")
    assert list(leases.free("ab", "bob").images) == ["a", "b"]
    assert "offers.json cannot be written" in caplog.text
