"""Every part of a new slice takes the label of what looked like it, near by, on the slice before."""

import numpy as np
import pytest
import torch

from medsa.segmenter.memory import Known, carry_over, look_of, share_of, sureness
from medsa.segmenter.session import State
from medsa.segmenter.slices import Encoded


def encoded(row: int, column: int, size: int = 12, seed: int = 0, cells: int = 32) -> Encoded:
    """A bright square of `size` cells on noise, with an embedding that tells it from what is around it."""
    inside = torch.zeros(cells, cells)
    inside[row : row + size, column : column + size] = 1.0
    noise = torch.Generator().manual_seed(seed)
    picture = inside[None] * 0.6 + 0.2 + 0.02 * torch.randn(1, cells, cells, generator=noise)
    embedding = torch.stack([inside, 1 - inside])[None] + 0.1 * torch.randn(
        1, 2, cells, cells, generator=noise
    )
    return Encoded(embedding, torch.nn.functional.interpolate(picture[None], scale_factor=8)[0].half())


def state(row: int, column: int, size: int = 12, cells: int = 32) -> State:
    logits = torch.full((4 * cells, 4 * cells), -6.0)
    logits[4 * row : 4 * (row + size), 4 * column : 4 * (column + size)] = 6.0
    return State(logits.half(), 1.0)


def remembered(row: int, column: int, size: int = 12) -> Known:
    return Known(look_of(encoded(row, column, size)), share_of(state(row, column, size), 32))


@pytest.mark.parametrize("moved", [(0, 0), (2, -1), (-3, 2)])
def test_what_moved_a_little_is_found_where_it_is_now(moved: tuple[int, int]) -> None:
    here = 10 + moved[0], 9 + moved[1]
    logits = carry_over(look_of(encoded(*here, seed=1)), [remembered(10, 9)], 128)
    assert State(logits, 1.0).agreement(state(*here)) > 0.9


def test_a_large_object_is_found_in_larger_cells() -> None:
    large, cells = 50, 64
    known = Known(
        look_of(encoded(6, 6, large, cells=cells)), share_of(state(6, 6, large, cells=cells), cells)
    )
    logits = carry_over(look_of(encoded(7, 5, large, seed=1, cells=cells)), [known], 256)
    assert State(logits, 1.0).agreement(state(7, 5, large, cells=cells)) > 0.9


def test_an_object_that_is_gone_is_not_seen() -> None:
    gone = look_of(encoded(10, 9, size=0, seed=1))
    assert sureness(carry_over(gone, [remembered(10, 9)], 128)) == 0
    assert sureness(carry_over(look_of(encoded(10, 9, seed=1)), [remembered(10, 9)], 128)) > 0.9


def test_an_empty_memory_gives_an_empty_mask() -> None:
    look = look_of(encoded(10, 9))
    assert not (carry_over(look, [Known(look, torch.zeros(32, 32))], 128) > 0).any()


def test_two_slices_are_remembered_together_in_any_order() -> None:
    look, memory = look_of(encoded(11, 9, seed=1)), [remembered(10, 9), remembered(12, 9)]
    one, other = (carry_over(look, known, 128) for known in (memory, memory[::-1]))
    assert np.allclose(one, other, atol=1e-3)
