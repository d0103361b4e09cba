"""A click in a volume changes what is around it and like it, on all slices it reaches, save settled ones."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.segmenter.space import Spot, spread

SIDE, DEPTH = 32, 9
PLAIN = np.full((1, SIDE, SIDE), 0.5, np.float32)
spots = st.builds(
    Spot, st.integers(0, DEPTH - 1), st.integers(0, SIDE - 1), st.integers(0, SIDE - 1), st.booleans()
)


def ball(radius: float, at: tuple[int, int, int] = (4, 16, 16)) -> dict[int, np.ndarray]:
    k, y, x = np.meshgrid(np.arange(DEPTH), np.arange(SIDE), np.arange(SIDE), indexing="ij")
    inside = (k - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2 < radius**2
    return dict(enumerate(np.where(inside, 5.0, -5.0).astype(np.float32)))


def moved(logits, spot: Spot, others=(), colours=lambda k: PLAIN, scale=(1.0, 1.0), fixed=()):
    return spread(logits, colours, spot, others, scale, depth=DEPTH, fixed=fixed)


@settings(deadline=None, max_examples=40)
@given(spot=spots, others=st.lists(spots, max_size=3), fixed=st.sets(st.integers(0, DEPTH - 1)))
def test_a_click_is_obeyed_settled_slices_stay_and_nothing_moves_the_other_way(spot, others, fixed) -> None:
    before = ball(3.5)
    others = [
        Spot(other.k, other.row, other.column, not spot.positive)
        for other in others
        if (other.k, other.row, other.column) != (spot.k, spot.row, spot.column)
    ]
    fixed -= {spot.k}
    after = moved(before, spot, others, fixed=fixed)
    now = (after.get(spot.k, before[spot.k]) > 0)[spot.row, spot.column]
    assert now == spot.positive
    assert not fixed & set(after)
    for k, values in after.items():
        assert ((values > 0) != (before[k] > 0)).any()
        wrong_way = (values > 0) & (before[k] <= 0) if not spot.positive else (values <= 0) & (before[k] > 0)
        assert not wrong_way.any()
    for other in others:
        if other.k in after:
            here = other.row, other.column
            assert (after[other.k] > 0)[here] == (before[other.k] > 0)[here]


def test_a_click_beside_a_hole_of_several_slices_fills_it_on_all_of_them() -> None:
    whole, hole = ball(12.0), ball(3.0, (4, 16, 20))
    torn = {k: np.where(hole[k] > 0, np.float32(-5), values) for k, values in whole.items()}
    after = moved(torn, Spot(4, 16, 20, True))
    assert all((after[k][hole[k] > 0] > 0).all() for k in (3, 4, 5))


def test_thick_slices_are_reached_less_far() -> None:
    thin, thick = (moved(ball(6.0), Spot(4, 16, 12, False), scale=(1.0, mm)) for mm in (1.0, 20.0))
    assert len(thin) > len(thick) == 1


def test_what_has_another_colour_stays() -> None:
    colours = PLAIN.copy()
    colours[:, :, 20:] = 5.0
    after = moved(ball(3.0), Spot(4, 24, 16, True), colours=lambda k: colours)
    assert (after[4][:, 16] > 0).any()
    assert not (after[4][24:, 20:] > 0).any()
