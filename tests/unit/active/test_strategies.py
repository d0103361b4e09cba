"""Strategies: what they choose, that they are pure, and what decides where nothing is known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsa.active.coverage import comparable, distances, nearest, typicality
from medsa.active.strategies import HORIZON, STRATEGIES, Pool, choose, noisy, possible, strategy
from medsa.errors import NotFoundError

SIZE = 12


def pool(seed: int = 0, labelled: int = 3) -> Pool:
    rng = np.random.default_rng(seed)
    looks = comparable(rng.normal(size=(SIZE + labelled, 6)).astype(np.float32))
    by_label = {"liver": rng.random(SIZE), "spleen": rng.random(SIZE)}
    return Pool(
        unsure=rng.permutation(np.arange(1.0, SIZE + 1)) / SIZE,
        held=rng.random(SIZE),
        typical=typicality(looks[:SIZE]),
        novel=nearest(looks[:SIZE], looks[SIZE:])[0],
        looks=looks[:SIZE],
        by_label=by_label,
        labelled=labelled,
        counts={"liver": 3, "spleen": 0},
    )


@pytest.mark.parametrize("name", STRATEGIES)
@given(seed=st.integers(0, 1000), count=st.integers(0, SIZE + 2))
def test_every_strategy_gives_different_studies_and_the_same_ones_again_under_a_seed(
    name, seed, count
) -> None:
    one, other = (choose(strategy(name), pool(seed), count, np.random.default_rng(seed)) for _ in range(2))
    assert [choice.n for choice in one] == [choice.n for choice in other]
    assert len({choice.n for choice in one}) == min(count, SIZE)
    assert all(1 <= choice.rank <= SIZE for choice in one)


def test_random_comes_first_because_clients_take_the_first() -> None:
    assert next(iter(STRATEGIES)) == "random"
    with pytest.raises(NotFoundError, match="hybrid"):
        strategy("none")


def test_uncertainty_takes_the_least_sure_and_first_the_first() -> None:
    given_pool, rng = pool(), np.random.default_rng(0)
    found = choose(STRATEGIES["uncertainty"], given_pool, 3, rng)
    assert [choice.n for choice in found] == np.argsort(-given_pool.unsure)[:3].tolist()
    assert [choice.rank for choice in found] == [1, 2, 3]
    assert [choice.n for choice in choose(STRATEGIES["first"], given_pool, 3, rng)] == [0, 1, 2]


def test_diversity_takes_the_farthest_and_then_what_is_far_from_that_too() -> None:
    places = np.array([[0, 0], [0.1, 0], [5, 0], [5.1, 0], [0, 4]], np.float32)
    rng, nan = np.random.default_rng(0), np.full(5, np.nan)
    novel = nearest(places, places[:1])[0]
    known = Pool(nan, nan, np.ones(5), novel, places, labelled=1)
    found = [choice.n for choice in choose(STRATEGIES["diversity"], known, 3, rng)]
    assert found[:2] == [3, 4]
    assert found[2] in (1, 2)


def test_without_any_label_the_most_typical_study_comes_first() -> None:
    rng = np.random.default_rng(1)
    looks = np.concatenate([rng.normal(0, 0.1, (9, 2)), [[4, 4]]]).astype(np.float32)
    nan = np.full(10, np.nan)
    cold = Pool(nan, nan, typicality(looks), np.full(10, np.inf), looks)
    (first,) = choose(STRATEGIES["diversity"], cold, 1, rng)
    assert first.n == int(cold.typical.argmax()) != 9
    chooser, warning = possible(STRATEGIES["uncertainty"], cold)
    assert chooser.name == "diversity"
    assert "nothing is labelled yet" in warning


def test_class_balanced_prefers_the_label_that_few_studies_have() -> None:
    late = replace(pool(labelled=5), labelled=HORIZON, counts={"liver": 10**6, "spleen": 0})
    found = [choose(STRATEGIES["class_balanced"], late, 1, np.random.default_rng(n))[0].n for n in range(50)]
    assert np.bincount(found).argmax() == late.by_label["spleen"].argmax()


def test_foreground_random_leaves_out_what_seems_empty() -> None:
    held = np.where(np.arange(SIZE) < 3, 0.9, 0.1)
    full = replace(pool(), held=held)
    rng = np.random.default_rng(0)
    firsts = {choose(STRATEGIES["foreground_random"], full, 1, rng)[0].n for _ in range(60)}
    assert firsts == {0, 1, 2}


def test_noise_decays_until_the_score_decides() -> None:
    score = np.linspace(0.5, 1, SIZE)

    def hits(labelled: int) -> int:
        return sum(
            int(noisy(score, labelled, np.random.default_rng(n)).argmax()) == SIZE - 1 for n in range(60)
        )

    assert hits(0) < hits(HORIZON // 2) < hits(HORIZON)
    assert hits(10 * HORIZON) == hits(HORIZON)


def known_up_to(full: Pool, count: int) -> dict[str, np.ndarray]:
    known = np.arange(SIZE) < count
    return {name: np.where(known, getattr(full, name), np.nan) for name in ("unsure", "held")}


def test_where_no_label_was_found_a_study_counts_as_scored_and_comes_last() -> None:
    full = pool()
    empty = replace(full, unsure=np.where(np.arange(SIZE) < 2, full.unsure, np.nan))
    chooser, warning = possible(STRATEGIES["uncertainty"], empty)
    assert (chooser.name, warning) == ("uncertainty", "")
    assert {choice.n for choice in choose(chooser, empty, 2, np.random.default_rng(0))} == {0, 1}


def test_chance_decides_where_most_scores_are_missing_and_a_warning_says_so() -> None:
    full = pool()
    few = replace(full, **known_up_to(full, 2))
    chooser, warning = possible(STRATEGIES["uncertainty"], few)
    assert chooser.name == "random"
    assert "10 of 12 images are not scored" in warning
    some = replace(full, **known_up_to(full, 9))
    chooser, warning = possible(STRATEGIES["uncertainty"], some)
    assert chooser.name == "uncertainty"
    assert "3 of 12" in warning
    found = [choice.n for choice in choose(chooser, some, SIZE, np.random.default_rng(0))]
    assert sorted(found[:9]) == list(range(9))  # what is not known comes last
    assert possible(STRATEGIES["hybrid"], full) == (STRATEGIES["hybrid"], "")
    assert possible(STRATEGIES["random"], Pool.unknown(4)) == (STRATEGIES["random"], "")


@given(st.integers(2, 40), st.integers(1, 8), st.integers(0, 99))
def test_distances_are_those_of_euclid(n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.normal(size=(count, d)).astype(np.float32) for count in (n, 3))
    plain = np.linalg.norm(a[:, None].astype(float) - b[None], axis=2)
    np.testing.assert_allclose(distances(a, b), plain, atol=1e-6)
    far, which = nearest(a, b)
    np.testing.assert_allclose(far, plain.min(axis=1), atol=1e-6)
    np.testing.assert_allclose(far, plain[np.arange(n), which], atol=1e-6)
    assert np.isinf(nearest(a, b[:0])[0]).all()
