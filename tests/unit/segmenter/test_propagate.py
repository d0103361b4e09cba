"""From the prompted slices outwards, until the object ends."""

import pytest

from medsa.errors import CancelledError
from medsa.segmenter.propagate import follow_through


def counting(k: int, neighbour: int) -> int:
    """How many steps slice k is away from the anchor its answer came from."""
    return neighbour + 1


def test_one_anchor_reaches_both_ends() -> None:
    assert follow_through({2: 0}, (0, 5), counting) == {0: 2, 1: 1, 2: 0, 3: 1, 4: 2, 5: 3}


def test_two_anchors_meet_halfway() -> None:
    assert follow_through({0: 0, 7: 0}, (0, 7), counting) == dict(enumerate([0, 1, 2, 3, 3, 2, 1, 0]))


def test_where_one_side_ends_the_other_goes_on() -> None:
    def step(k: int, neighbour: str) -> str | None:
        return None if neighbour == "low" and k == 2 else neighbour

    assert follow_through({0: "low", 6: "high"}, (0, 6), step) == {
        0: "low",
        1: "low",
        **dict.fromkeys(range(2, 7), "high"),
    }


def test_the_object_ends_where_a_step_finds_nothing() -> None:
    found = follow_through({5: 0}, (0, 9), lambda k, before: before + 1 if 3 <= k <= 6 else None)
    assert list(found) == [3, 4, 5, 6]


def test_bounds_are_never_left() -> None:
    assert list(follow_through({5: 0}, (4, 6), counting)) == [4, 5, 6]


def test_progress_counts_slices_and_a_cancelled_walk_raises() -> None:
    told: list[tuple[int, int]] = []
    follow_through({2: 0}, (0, 4), counting, progress=lambda done, most: told.append((done, most)))
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]
    with pytest.raises(CancelledError):
        follow_through({2: 0}, (0, 4), counting, cancelled=lambda: True)
