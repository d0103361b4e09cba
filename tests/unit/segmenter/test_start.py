"""A saved mask is corrected: clicks are obeyed, and what no click changes stays to the voxel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Session, Start

SHAPE = (90, 70, 6)


@pytest.fixture(scope="module")
def volume() -> Volume:
    voxels = np.random.default_rng(0).normal(60, 5, SHAPE)
    voxels[20:60, 20:50, 1:5] += 120
    return Volume(np.asfortranarray(voxels.astype(np.int16)), np.diag([1.0, 1.0, 2.0, 1.0]), "MR")


@pytest.fixture(scope="module")
def start() -> Start:
    """The upper half of the object, with an edge that no coarse grid of logits could hold."""
    mask = np.zeros(SHAPE, bool, order="F")
    mask[20:40, 20:50, 1:5] = np.random.default_rng(1).random((20, 30, 4)) > 0.1
    return Start(mask)


def ask(segmenter, volume, start, foreground=(), background=(), session=None) -> np.ndarray:
    prompt = Prompt(foreground=list(foreground), background=list(background))
    kinds = {"window": "0,255", "session": session, "start": start}
    return segmenter.segment_volume(volume, prompt, **kinds).mask != 0


def test_without_a_contradicting_click_the_mask_comes_back_to_the_voxel(segmenter, volume, start) -> None:
    assert (ask(segmenter, volume, start) == start.mask).all()
    inside = np.argwhere(start.mask)[100].tolist()
    assert (ask(segmenter, volume, start, [inside]) == start.mask).all()


def test_a_missed_part_is_added_and_a_spilled_one_taken_away(segmenter, volume, start) -> None:
    session = Session()
    more = ask(segmenter, volume, start, [[50, 35, 3]], session=session)
    assert more[45:55, 30:40, 3].mean() > 0.9
    assert (more & start.mask).sum() > 0.99 * start.mask.sum()
    less = ask(segmenter, volume, start, [[50, 35, 3]], [[25, 25, 2]], session)
    assert not less[25, 25, 2]
    assert less[45:55, 30:40, 3].mean() > 0.9


@settings(deadline=None, max_examples=10)
@given(
    point=st.tuples(st.integers(0, 89), st.integers(0, 69), st.integers(1, 4)).map(list),
    positive=st.booleans(),
)
def test_a_click_on_a_slice_alone_is_obeyed_and_changes_one_way_only(
    segmenter, volume, start, point, positive
) -> None:
    prompt = Prompt(foreground=[point] if positive else [], background=[] if positive else [point])
    k = point[2]
    mask = segmenter.segment_slice(volume, prompt, k, window="0,255", start=start).mask[:, :, k] != 0
    before = start.mask[:, :, k]
    assert mask[point[0], point[1]] == positive
    assert (mask >= before).all() if positive else (mask <= before).all()


def test_a_slice_without_a_mask_is_segmented_from_its_click(segmenter, volume, start) -> None:
    first = Start(start.mask & (np.arange(6) < 3))
    alone = segmenter.segment_slice(volume, Prompt(foreground=[[40, 35, 3]]), 3, window="0,255")
    begun = segmenter.segment_slice(volume, Prompt(foreground=[[40, 35, 3]]), 3, window="0,255", start=first)
    assert (alone.mask == begun.mask).all()


def test_another_mask_to_begin_with_gets_an_answer_of_its_own(segmenter, volume, start) -> None:
    session = Session()
    one = ask(segmenter, volume, start, [[50, 35, 3]], session=session)
    other = ask(segmenter, volume, Start(~start.mask), [[50, 35, 3]], session=session)
    assert (one != other).any()


def test_what_cannot_be_begun_with_is_refused(segmenter, volume, start) -> None:
    with pytest.raises(BadInputError, match="another grid"):
        ask(segmenter, volume, Start(np.zeros((3, 3, 3), bool)), [[1, 1, 1]])
    box = Prompt(box=[[2, 2, 2], [9, 9, 2]])
    with pytest.raises(BadInputError, match="corrected with clicks"):
        segmenter.segment_volume(volume, box, start=start)
