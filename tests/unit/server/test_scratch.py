"""Temporary folders: what a killed process left goes, what another one uses stays, wherever that one runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from medsa.server import scratch

HOLD = "from medsa.server import scratch; print(scratch.folder(), flush=True); input()"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path))
    scratch.folder.cache_clear()
    yield tmp_path
    scratch.folder.cache_clear()


@pytest.fixture
def other(cache):
    """A server that shares the cache."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_the_folder_of_a_server_in_another_container_stays(other, cache):
    folder = Path(other.stdout.readline().strip())
    unseen = folder.rename(folder.with_name("999999999-other"))
    (cache / "tmp.locks" / folder.name).rename(cache / "tmp.locks" / unseen.name)
    (unseen / "upload").touch()
    assert scratch.folder().is_dir()
    assert (unseen / "upload").is_file()


def test_what_a_killed_process_left_behind_is_removed(other, cache):
    folder = Path(other.stdout.readline().strip())
    assert folder.is_dir()
    other.kill()
    other.wait()
    (cache / "tmp" / "999999999-of an earlier version").mkdir()
    mine = scratch.folder()
    assert list((cache / "tmp").iterdir()) == [mine]
    assert {path.name for path in (cache / "tmp.locks").iterdir()} == {".lock", mine.name}


def test_a_process_that_ends_takes_its_folder_with_it(other):
    folder = Path(other.stdout.readline().strip())
    other.communicate("\n")
    assert other.returncode == 0
    assert list(folder.parent.iterdir()) == []
