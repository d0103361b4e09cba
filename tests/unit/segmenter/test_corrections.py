"""A click that the mask contradicts changes it; one that it agrees with changes nothing."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.data.model_input import Frame
from medsa.segmenter.corrections import correct
from medsa.segmenter.session import SlicePrompt, State

FRAME = Frame(64, 64, 256)
CELLS = 64
point = st.tuples(st.integers(0, 63), st.integers(0, 63)).map(lambda p: (4 * p[0] + 1.5, 4 * p[1] + 1.5))


def filled(boxes):
    """A model for which the object in a box is the ellipse that fills it."""
    y, x = np.ogrid[:CELLS, :CELLS]
    masks = []
    for x0, y0, x1, y1 in boxes / 4:
        inside = ((x - (x0 + x1) / 2) / (x1 - x0 + 1) * 2) ** 2 + (
            (y - (y0 + y1) / 2) / (y1 - y0 + 1) * 2
        ) ** 2
        masks.append(torch.from_numpy(np.where(inside <= 1, 4.0, -4.0)).float())
    return torch.stack(masks), torch.full((len(masks),), 0.9)


def nothing(boxes):
    """A model that finds no object anywhere."""
    return torch.full((len(boxes), CELLS, CELLS), -4.0), torch.zeros(len(boxes))


def state(box=(60.0, 60.0, 180.0, 180.0)):
    return State(filled(np.array([box]))[0][0].half(), 0.9)


def at(mask, p):
    return bool(mask[int((p[1] + 0.5) / 4), int((p[0] + 0.5) / 4)])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(point, min_size=1, max_size=4, unique=True),
    st.lists(point, max_size=4, unique=True),
    st.booleans(),
)
def test_every_click_is_obeyed_at_its_place(foreground, background, blind):
    background = [p for p in background if p not in foreground]
    prompt = SlicePrompt(tuple(foreground), tuple(background))
    mask = correct(nothing if blind else filled, FRAME, prompt, state()).mask
    assert all(at(mask, p) for p in foreground)
    assert not any(at(mask, p) for p in background)


def test_a_click_that_agrees_changes_nothing():
    before = state()
    prompt = SlicePrompt(((121.5, 121.5),), ((5.5, 5.5),))
    assert torch.equal(correct(filled, FRAME, prompt, before).logits, before.logits)


def test_a_missed_click_stretches_the_mask_and_a_spilled_one_cuts_it():
    before = state()
    larger = correct(filled, FRAME, SlicePrompt(((121.5, 121.5), (221.5, 121.5))), before)
    assert larger.mask.sum() > before.mask.sum()
    smaller = correct(filled, FRAME, SlicePrompt(((101.5, 121.5),), ((161.5, 121.5),)), before)
    assert smaller.mask.sum() < before.mask.sum()


def test_an_empty_mask_is_corrected_too():
    empty = State(torch.full((CELLS, CELLS), -4.0).half(), 0.1)
    assert at(correct(filled, FRAME, SlicePrompt(((121.5, 121.5),)), empty).mask, (121.5, 121.5))
