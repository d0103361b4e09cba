"""A mixture of prompts gives what its shares say, the same under the same seed."""

import numpy as np
import pytest
from pydantic import ValidationError

from medsa.prompts.annotator import first_clicks, next_clicks, tight_boxes
from medsa.prompts.mixture import (
    PromptMixture,
    draw,
    mixed_boxes,
    mixed_first_clicks,
    mixed_next_clicks,
)


def _batch(count: int = 400) -> np.ndarray:
    truth = np.zeros((count, 12, 10), bool)
    truth[:, 2:9, 3:8] = True
    return truth


def test_interactions_come_in_the_shares_of_the_mixture() -> None:
    mixture = PromptMixture(click=2, box=1, click_and_box=1, rounds=3)
    rng = np.random.default_rng(0)
    drawn = [draw(mixture, rng) for _ in range(2000)]
    assert np.mean([one.start == "click" for one in drawn]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([one.start == "box" for one in drawn]) == pytest.approx(0.25, abs=0.05)
    assert {one.rounds for one in drawn} == {0, 1, 2, 3}
    assert all(one.clicks or one.boxes for one in drawn)


def test_a_mixture_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="above 0"):
        PromptMixture(click=0, box=0, click_and_box=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_many_clicks_and_boxes_are_random(share: float) -> None:
    mixture = PromptMixture(random_first=share, random_further=share, tight=1 - share)
    truth, nothing = _batch(), np.zeros_like(_batch())
    first = mixed_first_clicks(truth, mixture, np.random.default_rng(1))
    further = mixed_next_clicks(truth, nothing, mixture, np.random.default_rng(1))
    boxes = mixed_boxes(truth, mixture, np.random.default_rng(1))
    assert truth[np.arange(len(truth)), *first.index.T].all()
    for found, fixed in ((first, first_clicks(truth)), (further, next_clicks(truth, nothing))):
        assert (found.index != fixed.index).any(axis=1).mean() == pytest.approx(share, abs=0.08)
    assert (boxes != tight_boxes(truth)).any(axis=(1, 2)).mean() == pytest.approx(share, abs=0.08)


def test_the_same_seed_gives_the_same_prompts() -> None:
    truth, mixture = _batch(20), PromptMixture()
    one, other = (mixed_first_clicks(truth, mixture, np.random.default_rng(7)) for _ in range(2))
    assert (one.index == other.index).all()
