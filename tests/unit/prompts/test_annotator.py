"""The simulated annotator clicks where a person would, and always the same way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medsa.prompts.annotator import Click, box_iou, first_click, loose_box, next_click, tight_box

masks = arrays(np.bool_, (9, 7))


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
