"""Zoom: a small box in a large slice is looked at closely, and what is found lies where it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsa.data.model_input import Frame
from medsa.data.volume import Volume
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Session
from medsa.segmenter.zoom import zoomed

SHAPE = (200, 150, 3)


@pytest.fixture(scope="module")
def volume() -> Volume:
    voxels = np.random.default_rng(0).normal(60, 20, SHAPE)
    return Volume(np.asfortranarray(voxels.astype(np.int16)), np.eye(4), "MR")


@given(
    size=st.tuples(st.integers(300, 900), st.integers(300, 900)),
    corner=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)),
    extent=st.tuples(st.integers(2, 29), st.integers(2, 29)),
)
def test_the_part_lies_in_the_slice_and_holds_the_box_with_room(size, corner, extent) -> None:
    whole = Frame(*size, 256)
    low = np.floor(np.array(size) * corner)
    high = np.minimum(low + extent, np.array(size) - 1)
    frame = zoomed(whole, Prompt(box=np.stack([[*low, 0], [*high, 0]])))
    columns, rows = frame.inside
    assert 0 <= columns.start <= low[0] <= high[0] < columns.stop <= size[0]
    assert 0 <= rows.start <= low[1] <= high[1] < rows.stop <= size[1]
    assert frame.scale.max() >= whole.scale.max()
    assert max(frame.width, frame.height) >= min(256, max(size))
    ij = np.array([low, high])
    assert frame.points_to_voxel(frame.points_to_model(ij)) == pytest.approx(ij)
    assert frame.boxes_to_voxel(frame.boxes_to_model(ij.reshape(4))) == pytest.approx(ij.reshape(4))


def test_large_boxes_clicks_and_small_slices_are_looked_at_as_a_whole() -> None:
    large, small = Frame(600, 500, 256), Frame(300, 200, 256)
    box = [[100, 100, 0], [120, 120, 0]]
    assert zoomed(large, Prompt(box=box)) != large
    assert zoomed(small, Prompt(box=box)) == small
    assert zoomed(large, Prompt(box=[[100, 100, 0], [200, 120, 0]])) == large
    assert zoomed(large, Prompt(foreground=[[100, 100, 0]])) == large
    assert zoomed(large, Prompt(box=box, background=[[590, 400, 0]])) == large
    assert zoomed(large, Prompt(box=box, background=[[130, 110, 0]])) == zoomed(large, Prompt(box=box))


def test_a_closer_look_is_that_of_the_part_alone_put_in_its_place(segmenter, volume) -> None:
    box = np.array([[150, 100, 1], [162, 111, 1]])
    close = segmenter.segment_slice(volume, Prompt(box=box), 1, window="0,120")
    assert float(close.options["zoom"]) == pytest.approx(200 / 64, abs=0.05)
    part = Volume(np.asfortranarray(volume.voxels[124:188, 74:138]), volume.affine, "MR")
    moved = box - [124, 74, 0]
    alone = segmenter.segment_slice(part, Prompt(box=moved), 1, window="0,120").mask
    assert alone.any()
    np.testing.assert_array_equal(close.mask[124:188, 74:138], alone)
    assert close.mask.sum() == alone.sum()
    whole = segmenter.segment_slice(volume, Prompt(box=box), 1, window="0,120", zoom=False)
    assert whole.options["zoom"] == "1.0"
    assert (whole.mask != close.mask).any()


def test_a_click_after_a_box_is_obeyed_in_the_same_part_of_slice_and_volume(segmenter, volume) -> None:
    box, aside = [[150, 100, 1], [162, 111, 1]], [[156, 106, 1]]
    for ask in (
        lambda prompt, session: segmenter.segment_slice(volume, prompt, 1, window="0,120", session=session),
        lambda prompt, session: segmenter.segment_volume(volume, prompt, window="0,120", session=session),
    ):
        session = Session()
        ask(Prompt(box=box), session)
        after = ask(Prompt(box=box, background=aside), session)
        assert float(after.options["zoom"]) > 3
        assert not after.mask[156, 106, 1]
        assert not after.mask[:100].any()
