"""A prompt says what it means or is refused with a sentence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsa.errors import BadInputError
from medsa.prompts import Prompt

finite = st.floats(-1e4, 1e4, allow_nan=False)
point = st.tuples(finite, finite, finite)


@given(st.lists(point, max_size=5), st.lists(point, max_size=5))
def test_points_keep_their_values_and_order(foreground, background):
    prompt = Prompt(foreground, background)
    assert prompt.foreground.tolist() == [list(p) for p in foreground]
    assert prompt.background.tolist() == [list(p) for p in background]
    assert prompt.empty == (not foreground)


@given(point, point)
def test_a_box_has_its_corners_sorted_whatever_order_they_came_in(a, b):
    if sum(one == other for one, other in zip(a, b, strict=True)) > 1:
        with pytest.raises(BadInputError, match="no area"):
            Prompt(box=[a, b])
    else:
        box = Prompt(box=[a, b]).box
        assert (box == Prompt(box=[b, a]).box).all()
        assert (box[0] <= box[1]).all()
        assert Prompt(box=[a, b]).across == (a[0] == b[0] or a[1] == b[1])


@pytest.mark.parametrize(
    "bad", [[[1, 2]], [[1, 2, float("nan")]], [[1, 2, float("inf")]], "abc", [["a", 1, 2]], [[[1]]]]
)
def test_what_is_no_list_of_finite_points_is_refused(bad):
    with pytest.raises(BadInputError, match="foreground"):
        Prompt(foreground=bad)


def test_a_point_outside_the_grid_is_refused_and_named():
    Prompt(foreground=[[0, 0, 0], [9.4, 4, 2]]).check_inside((10, 5, 3))
    with pytest.raises(
        BadInputError, match=r"foreground point \(3, 5, 1\) lies outside the image of 10 x 5 x 3"
    ):
        Prompt(foreground=[[3, 5, 1]]).check_inside((10, 5, 3))
    with pytest.raises(BadInputError, match="background"):
        Prompt(background=[[-1, 0, 0]]).check_inside((10, 5, 3))


def test_a_box_may_stick_out_of_the_grid_but_not_miss_it():
    Prompt(box=[[-5, -5, 0], [3, 3, 0]]).check_inside((10, 5, 3))
    with pytest.raises(BadInputError, match="box lies outside"):
        Prompt(box=[[20, 0, 0], [30, 3, 0]]).check_inside((10, 5, 3))


def test_points_cannot_be_changed_behind_the_prompts_back():
    points = np.zeros((1, 3))
    prompt = Prompt(points)
    points[0, 0] = 1
    assert prompt.foreground[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        prompt.foreground[0, 0] = 1
