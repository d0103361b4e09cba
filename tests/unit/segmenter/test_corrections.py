"""A click that the mask contradicts changes it; one that it agrees with changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.data.model_input import Frame
from medsa.segmenter.corrections import correct
from medsa.segmenter.session import SlicePrompt

FRAME = Frame(64, 64, 256)
CELLS = 64
PLAIN = torch.full((1, 256, 256), 0.5)
cells = st.tuples(st.integers(0, 63), st.integers(0, 63))


def at(cell: tuple[int, int]) -> tuple[float, float]:
    """The middle of a cell (x, y) in model pixels."""
    return 4 * cell[0] + 1.5, 4 * cell[1] + 1.5


def disc(x: int, y: int, radius: int) -> torch.Tensor:
    rows, columns = np.ogrid[:CELLS, :CELLS]
    inside = (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return torch.from_numpy(np.where(inside, 5.0, -5.0)).float()


def prompt(foreground: list[tuple[int, int]], background: list[tuple[int, int]]) -> SlicePrompt:
    return SlicePrompt(tuple(map(at, foreground)), tuple(map(at, background)))


@settings(deadline=None)
@given(
    foreground=st.lists(cells, max_size=5, unique=True),
    background=st.lists(cells, max_size=5, unique=True),
    level=st.sampled_from([-40.0, -5.0, 0.0, 5.0, 40.0]),
    seed=st.integers(0, 9),
)
def test_every_click_is_obeyed_at_its_place(foreground, background, level, seed) -> None:
    background = [cell for cell in background if cell not in foreground]
    picture = torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(seed))
    mask = correct(torch.full((CELLS, CELLS), level), picture, prompt(foreground, background), FRAME) > 0
    assert all(mask[y, x] for x, y in foreground)
    assert not any(mask[y, x] for x, y in background)


def test_a_click_that_agrees_changes_nothing() -> None:
    before = disc(30, 30, 12)
    assert torch.equal(correct(before, PLAIN, prompt([(30, 30)], [(2, 2)]), FRAME), before)


def test_a_missed_click_adds_about_its_distance_and_a_spilled_one_takes_it_away() -> None:
    before = disc(30, 30, 12)
    added = (correct(before, PLAIN, prompt([(52, 30)], []), FRAME) > 0) & (before <= 0)
    assert added[30, 46:58].all()
    assert not added[:, :10].any()
    taken = (before > 0) & (correct(before, PLAIN, prompt([], [(36, 30)]), FRAME) <= 0)
    assert taken[30, 33:40].all()
    assert not taken[30, 18:24].any()


def test_what_has_another_colour_than_the_click_stays_as_it_was() -> None:
    picture = torch.zeros(1, 256, 256)
    picture[:, 128:] = 1.0
    added = correct(disc(10, 10, 4), picture, prompt([(40, 24)], []), FRAME) > 0
    assert added[24:31, 40].all()
    assert not added[33:, :].any()


def test_what_is_close_to_a_click_of_the_other_kind_stays_as_it_was() -> None:
    before = torch.full((CELLS, CELLS), -5.0)
    after = correct(before, PLAIN, prompt([(20, 30)], [(26, 30)]), FRAME)
    assert after[30, 20] > 0
    assert torch.equal(after[29:32, 25:28], before[29:32, 25:28])
    assert (after[:, 40:] <= 0).all()


@pytest.mark.parametrize("size", [256, 1024])
def test_the_models_resolution_does_not_matter(size: int) -> None:
    frame = Frame(64, 64, size)
    click = tuple(frame.points_to_model(np.array([52.0, 30.0])))
    after = correct(disc(30, 30, 12), PLAIN, SlicePrompt((click,)), frame)
    assert torch.equal(after, correct(disc(30, 30, 12), PLAIN, prompt([(52, 30)], []), FRAME))
