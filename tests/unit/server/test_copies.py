"""Files made of what a store holds: made once, few, and gone with their series."""

import os
import time
from pathlib import Path

import pytest

from medsa.server import copies
from medsa.server.copies import Copies


@pytest.fixture
def kept(tmp_path):
    return Copies(tmp_path / "images", most=250)


def make(path):
    path.write_bytes(bytes(100))


def unused(path, seconds=2 * copies.IN_USE):
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_a_copy_is_made_once_for_each_state_of_an_image(kept):
    made = []
    paths = {kept.get("1.2", state, lambda path: (made.append(path), make(path))) for state in "aab"}
    assert sorted(made) == sorted(paths)
    assert len(paths) == 2
    assert kept.get("1.3", "a", make) not in paths


def test_of_too_many_those_go_that_were_not_used_for_longest(kept):
    first, second = (
        unused(kept.get(image, "", make), copies.IN_USE * age) for image, age in (("a", 3), ("b", 2))
    )
    assert kept.get("a", "", make) == first
    third = kept.get("c", "", make)
    assert [path.is_file() for path in (first, second, third)] == [True, False, True]


def test_what_may_be_in_use_stays_however_much_it_is(kept):
    paths = [kept.get(image, "", make) for image in "abcd"]
    assert all(path.is_file() for path in paths)


def test_copies_of_images_that_are_gone_go(kept):
    gone, there = unused(kept.get("1.2", "a", make)), unused(kept.get("1.3", "a", make))
    in_use = kept.get("1.4", "a", make)
    half_written = gone.with_name(f".{gone.name}.part")
    make(half_written)
    unused(half_written)
    kept.keep_only(["1.3"])
    assert [path.is_file() for path in (gone, half_written, there, in_use)] == [False, False, True, True]


def test_before_the_first_copy_there_is_nothing_to_clean(kept):
    kept.keep_only([])


def test_copies_that_cannot_be_removed_are_told_once(tmp_path, monkeypatch, caplog) -> None:
    copies = Copies(tmp_path / "images")
    old = copies.get("gone", "1", lambda path: path.write_bytes(b"x"))
    os.utime(old, (0, 0))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(old))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        copies.keep_only([])
        copies.keep_only([])
    (record,) = caplog.records
    assert record.getMessage() == "old copies of images stay on this disk: Permission denied"
    copies.keep_only([])
    assert not old.exists()
