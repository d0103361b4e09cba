"""A bare click on a backbone that knows boxes only: candidates around it, the best-looking one wins."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.data.model_input import Frame
from medsa.segmenter.proposals import (
    BATCH,
    Candidates,
    boxes_of_colour,
    mask_box,
    quality,
    squares_around,
)

FRAME = Frame(200, 100, 256)


def picture_with_a_square() -> torch.Tensor:
    picture = torch.zeros(1, 256, 256)
    picture[:, 40:90, 60:160] = 1.0
    return picture


@settings(deadline=None, max_examples=30)
@given(
    x=st.floats(0, 255),
    y=st.floats(0, 127),
    seed=st.integers(0, 5),
    colours=st.sampled_from([1, 3]),
)
def test_every_candidate_box_lies_in_the_slice_and_one_batch_holds_them_all(x, y, seed, colours) -> None:
    picture = torch.rand(colours, 256, 256, generator=torch.Generator().manual_seed(seed)).half()
    boxes = np.concatenate([squares_around((x, y), FRAME), boxes_of_colour(picture, (x, y), FRAME)])
    assert 0 < len(boxes) <= BATCH
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= 255).all()
    assert (boxes[:, [1, 3]] <= 127).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_a_region_of_one_colour_gets_its_own_box_wherever_one_clicks_in_it() -> None:
    for click in ((70.0, 50.0), (110.0, 65.0), (150.0, 80.0)):
        boxes = boxes_of_colour(picture_with_a_square(), click, FRAME)
        assert np.abs(boxes - [60, 40, 159, 89]).max(axis=1).min() <= 4


def test_a_slice_of_one_colour_gives_no_region_and_no_error() -> None:
    assert boxes_of_colour(torch.ones(1, 256, 256), (50.0, 50.0), FRAME).shape == (0, 4)


def test_the_mask_that_follows_a_border_looks_better_than_one_that_does_not() -> None:
    boxes = np.array([[50.0, 30.0, 170.0, 100.0]] * 2)
    logits = torch.full((2, 128, 128), -5.0)
    logits[0, 20:45, 30:80] = 5.0
    logits[1, 20:45, 40:90] = 5.0
    candidates = Candidates(boxes, logits, np.full(2, 0.8, np.float32))
    good, shifted = quality(candidates, picture_with_a_square(), (110.0, 64.0), FRAME)
    assert good > shifted


def test_a_mask_without_the_click_comes_last_whatever_the_model_says() -> None:
    boxes = np.array([[50.0, 30.0, 170.0, 100.0]] * 2)
    logits = torch.full((2, 128, 128), -5.0)
    logits[0, 20:45, 30:80] = 5.0
    logits[1, 30:40, 90:100] = 0.5
    candidates = Candidates(boxes, logits, np.array([0.99, 0.1], np.float32))
    without, holding = quality(candidates, picture_with_a_square(), (190.0, 70.0), FRAME)
    assert holding > without


def test_the_box_of_a_mask_spans_its_cells_and_is_clipped_to_the_slice() -> None:
    mask = np.zeros((128, 128), bool)
    mask[10:20, 30:50] = True
    assert mask_box(mask, 2.0, FRAME).tolist() == [60, 20, 99, 39]
    assert mask_box(mask, 2.0, FRAME, 0.1) == pytest.approx(np.array([56, 18, 103, 41]))
    mask[60:64] = True
    assert mask_box(mask, 2.0, FRAME, 0.5)[3] == 127
