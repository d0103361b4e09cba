"""Back and forth through what was asked for."""

from hypothesis import given
from hypothesis import strategies as st

from medsa.server.history import Histories

moves = st.lists(st.one_of(st.integers(), st.sampled_from(["back", "again"])), max_size=30)


@given(moves)
def test_it_moves_as_through_a_list_of_steps(moves) -> None:
    kept: Histories[int] = Histories(most_steps=100)
    steps, at = [], 0
    for move in moves:
        if move == "back":
            at = max(at - 1, 0)
            assert kept.back("me") == (steps[at - 1] if at else None)
        elif move == "again":
            at = min(at + 1, len(steps))
            assert kept.again("me") == (steps[at - 1] if at else None)
        else:
            steps = [*steps[:at], move]
            at = len(steps)
            kept.add("me", move)


def test_histories_and_their_steps_are_bounded_and_of_one_user_each() -> None:
    kept: Histories[int] = Histories(most=2, most_steps=3)
    for step in range(5):
        kept.add("a", step)
    kept.add("b", 7)
    assert [kept.back("a") for _ in range(3)] == [3, 2, None]
    assert kept.back("b") is None
    kept.add("c", 1)
    assert kept.again("a") is None
    kept.forget("b")
    assert kept.again("b") is None
