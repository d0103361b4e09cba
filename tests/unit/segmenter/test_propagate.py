"""From the slices a user spoke about outwards, until the object ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsa.errors import CancelledError
from medsa.segmenter.propagate import follow_through


def counting(k: int, beside: int, neighbour: float) -> float:
    """How many slices slice k is away from the anchor its answer came from."""
    return neighbour + abs(k - beside)


def between(one: float, other: float, part: float) -> float:
    return (1 - part) * one + part * other


def test_one_anchor_reaches_both_ends() -> None:
    found = follow_through({2: 0.0}, (0, 5), counting, between)
    assert found == {0: 2, 1: 1, 2: 0, 3: 1, 4: 2, 5: 3}


def test_between_two_anchors_both_ways_are_mixed_the_nearer_anchor_weighing_more() -> None:
    found = follow_through({0: "low", 4: "high"}, (0, 4), lambda k, at, before: before, lambda *x: x)
    assert found[1] == ("low", "high", 0.25)
    assert found[3] == ("low", "high", 0.75)
    assert (found[0], found[4]) == ("low", "high")


def test_where_one_side_ends_the_other_goes_on() -> None:
    def step(k: int, _: int, neighbour: str) -> str | None:
        return None if neighbour == "low" and k in (2, 3) else neighbour

    found = follow_through({0: "low", 6: "high"}, (0, 6), step, lambda one, other, part: f"{one}+{other}")
    assert found == {0: "low", 1: "low+high", **dict.fromkeys(range(2, 7), "high")}


def test_the_object_ends_where_it_is_not_seen_twice() -> None:
    found = follow_through({5: 0}, (0, 9), lambda k, at, n: n + 1 if 3 <= k <= 6 else None, between)
    assert list(found) == [3, 4, 5, 6]


def test_a_gap_of_one_slice_is_bridged_and_one_at_the_bound_is_an_end() -> None:
    found = follow_through({5: 0.0}, (0, 9), lambda k, at, n: None if k in (3, 9) else n + 1, between)
    assert list(found) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert found[3] == (found[2] + found[4]) / 2


@given(
    anchors=st.dictionaries(st.integers(0, 12), st.just(0.0), min_size=1, max_size=4),
    missing=st.sets(st.integers(0, 12)),
    low=st.integers(0, 4),
    high=st.integers(8, 12),
)
def test_bounds_are_kept_anchors_stay_and_the_order_of_slices_does_not_matter(
    anchors, missing, low, high
) -> None:
    low, high = min(low, *anchors), max(high, *anchors)

    def follow(turn: int) -> dict[int, float]:
        def at(k: int) -> int:
            return 12 - k if turn else k

        def step(k: int, beside: int, neighbour: float) -> float | None:
            return None if at(k) in missing else counting(k, beside, neighbour)

        found = follow_through(
            {at(k): value for k, value in anchors.items()},
            (min(at(low), at(high)), max(at(low), at(high))),
            step,
            between,
        )
        return {at(k): value for k, value in found.items()}

    found = follow(0)
    assert {k: found[k] for k in anchors} == anchors
    assert min(found) >= low
    assert max(found) <= high
    assert follow(1) == pytest.approx(found)


def test_progress_counts_slices_and_a_cancelled_walk_raises() -> None:
    told: list[tuple[int, int]] = []
    follow_through({2: 0.0}, (0, 4), counting, between, progress=lambda *now: told.append(now))
    assert told == [(2, 5), (3, 5), (4, 5), (5, 5)]
    with pytest.raises(CancelledError):
        follow_through({2: 0.0}, (0, 4), counting, between, cancelled=lambda: True)
