"""What is done to a mask when it is asked for: parts and holes; clicks are obeyed all the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from medsa.errors import BadInputError
from medsa.prompts.prompt import Prompt
from medsa.segmenter.finish import Finish, finished

SPACING = np.array([1.0, 1.0, 2.0])
masks = arrays.arrays(np.uint8, (6, 7, 4), elements=st.integers(0, 1))
voxels = st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(0, 3)).map(list)
wishes = st.builds(Finish, st.booleans(), st.booleans(), st.sampled_from([0.0, 4.0, 20.0]))


def drawn() -> np.ndarray:
    """A block of 27 voxels with a hole through its middle slice, and a crumb of two voxels beside it."""
    mask = np.zeros((9, 9, 5), np.uint8, order="F")
    mask[1:4, 1:4, 1:4] = 1
    mask[2, 2, 2] = 0
    mask[6, 6, 1:3] = 1
    return mask


def test_nothing_is_done_unless_it_is_asked_for() -> None:
    mask = drawn()
    assert finished(mask, Prompt(foreground=[[2, 1, 1]]), SPACING, Finish()) is mask


def test_the_largest_part_stays_alone() -> None:
    result = finished(drawn(), Prompt(foreground=[[2, 1, 1]]), SPACING, Finish(largest=True))
    assert result.sum() == 26
    assert not result[6, 6].any()


def test_a_small_part_goes_by_its_size_in_millimetres() -> None:
    prompt = Prompt(foreground=[[2, 1, 1]])
    assert finished(drawn(), prompt, SPACING, Finish(smallest=4.0)).sum() == 28
    assert finished(drawn(), prompt, SPACING, Finish(smallest=4.1)).sum() == 26


def test_a_clicked_part_stays_however_small() -> None:
    prompt = Prompt(foreground=[[2, 1, 1], [6, 6, 2]])
    for wanted in (Finish(largest=True), Finish(smallest=100.0)):
        assert finished(drawn(), prompt, SPACING, wanted)[6, 6].sum() == 2


def test_a_hole_is_filled_unless_it_was_clicked_out() -> None:
    fill = Finish(fill=True)
    assert finished(drawn(), Prompt(foreground=[[2, 1, 1]]), SPACING, fill)[2, 2, 2] == 1
    aside = Prompt(foreground=[[2, 1, 1]], background=[[2, 2, 2]])
    assert finished(drawn(), aside, SPACING, fill)[2, 2, 2] == 0


@given(mask=masks, clicks=st.lists(voxels, max_size=3), wanted=wishes)
def test_clicks_are_obeyed_twice_is_once_and_the_mask_given_stays_as_it_was(mask, clicks, wanted) -> None:
    points = np.array(clicks, float).reshape(-1, 3)
    on = mask[tuple(points.astype(int).T)] == 1
    prompt = Prompt(foreground=points[on], background=points[~on])
    before = mask.copy()
    result = finished(mask, prompt, SPACING, wanted)
    assert (mask == before).all()
    assert (result[tuple(points.astype(int).T)] == on).all()
    assert (finished(result, prompt, SPACING, wanted) == result).all()
    if wanted.largest and not on.any():
        assert ndimage.label(result)[1] <= ndimage.label(mask)[1]


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_a_size_that_is_none_is_refused(size: float) -> None:
    with pytest.raises(BadInputError, match="cubic millimetres"):
        Finish(smallest=size)
