"""The simulated annotator clicks where a person would, and always the same way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medsa.prompts.annotator import (
    Click,
    Clicks,
    box_iou,
    first_click,
    first_clicks,
    jittered_boxes,
    loose_box,
    next_click,
    next_clicks,
    tight_box,
    tight_boxes,
)

masks = arrays(np.bool_, (9, 7))
batches = arrays(np.bool_, (4, 9, 7))
seeds = st.none() | st.integers(0, 99)


def _disc(centre: tuple[int, int], radius: int) -> np.ndarray:
    i, j = np.mgrid[:40, :30]
    return (i - centre[0]) ** 2 + (j - centre[1]) ** 2 <= radius**2


def test_the_first_click_is_the_deepest_point() -> None:
    assert first_click(_disc((20, 11), 8)) == Click((20, 11), True)


def test_the_border_of_the_image_bounds_the_object() -> None:
    assert first_click(np.ones((5, 5), bool)).index == (2, 2)


@given(truth=masks.filter(np.any), seed=st.integers(0, 99))
def test_a_random_first_click_is_on_the_object_and_repeats_under_its_seed(
    truth: np.ndarray, seed: int
) -> None:
    one, other = (first_click(truth, np.random.default_rng(seed)) for _ in range(2))
    assert one == other
    assert truth[one.index]


@given(truth=masks, predicted=masks)
def test_the_next_click_is_wrong_where_it_says(truth: np.ndarray, predicted: np.ndarray) -> None:
    click = next_click(truth, predicted)
    if click is None:
        assert (truth == predicted).all()
    else:
        assert truth[click.index] == click.positive
        assert predicted[click.index] != click.positive


def test_the_next_click_is_in_the_largest_wrong_region() -> None:
    truth, predicted = _disc((10, 10), 6), _disc((10, 10), 6)
    truth[30:33, 5:8] = True
    predicted[30:38, 20:28] = True
    assert next_click(truth, predicted) == Click((33, 23), False)


@settings(deadline=None)
@given(iou=st.sampled_from([0.75, 0.5]), seed=st.integers(0, 1000))
def test_a_loose_box_has_the_iou_asked_for_and_stays_in_the_image(iou: float, seed: int) -> None:
    truth = _disc((20, 8), 8)
    box = loose_box(truth, iou, np.random.default_rng(seed))
    assert box_iou(tight_box(truth), box) == pytest.approx(iou, abs=1e-3)
    assert (box >= 0).all()
    assert (box <= np.array(truth.shape) - 1).all()
    assert (loose_box(truth, iou, np.random.default_rng(seed)) == box).all()


def test_an_object_that_fills_the_image_can_still_have_a_loose_box() -> None:
    truth = np.ones((20, 20), bool)
    assert box_iou(tight_box(truth), loose_box(truth, 0.5, np.random.default_rng(0))) == pytest.approx(
        0.5, abs=1e-3
    )


def test_everything_works_in_a_volume() -> None:
    truth = np.zeros((9, 9, 9), bool)
    truth[2:7, 2:7, 2:7] = True
    assert first_click(truth).index == (4, 4, 4)
    assert tight_box(truth).tolist() == [[2, 2, 2], [6, 6, 6]]


def test_without_an_object_there_is_nothing_to_click_on() -> None:
    for ask in (first_click, tight_box):
        with pytest.raises(ValueError):
            ask(np.zeros((3, 3), bool))


def _rng(seed: int | None) -> np.random.Generator | None:
    return None if seed is None else np.random.default_rng(seed)


def _one_by_one(clicks: Clicks) -> list[Click | None]:
    return [
        Click((int(i), int(j)), bool(positive)) if found else None
        for (i, j), positive, found in zip(clicks.index, clicks.positive, clicks.found, strict=True)
    ]


@settings(deadline=None)
@given(truth=batches, predicted=batches, seed=seeds)
def test_clicks_for_a_batch_are_those_of_its_masks_one_by_one(
    truth: np.ndarray, predicted: np.ndarray, seed: int | None
) -> None:
    rng = _rng(seed)
    first = [first_click(mask, rng) if mask.any() else None for mask in truth]
    assert _one_by_one(first_clicks(truth, _rng(seed))) == first
    rng = _rng(seed)
    further = [next_click(mask, guess, rng) for mask, guess in zip(truth, predicted, strict=True)]
    assert _one_by_one(next_clicks(truth, predicted, _rng(seed))) == further


@given(truth=batches.filter(lambda masks: masks.any(axis=(1, 2)).all()))
def test_boxes_for_a_batch_are_those_of_its_masks_one_by_one(truth: np.ndarray) -> None:
    assert (tight_boxes(truth) == np.stack([tight_box(mask) for mask in truth])).all()


@given(seed=st.integers(0, 1000), deviation=st.floats(0, 2))
def test_jittered_boxes_stay_in_the_image_near_the_tight_ones_and_repeat_under_their_seed(
    seed: int, deviation: float
) -> None:
    truth = np.stack([_disc((20, 11), 8), _disc((3, 28), 5)])
    boxes = jittered_boxes(truth, np.random.default_rng(seed), deviation, most=0.1)
    assert (boxes == jittered_boxes(truth, np.random.default_rng(seed), deviation, most=0.1)).all()
    assert (np.abs(boxes - tight_boxes(truth)) <= np.array([4.0, 3.0]) + 1e-9).all()
    assert (boxes >= 0).all()
    assert (boxes <= [39, 29]).all()
