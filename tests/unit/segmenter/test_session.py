"""What is remembered between clicks: per user, in order, bounded, and gone when idle."""

import threading

import torch

from medsa.segmenter import Session, Sessions
from medsa.segmenter.session import Answer, SlicePrompt, State
from medsa.segmenter.turns import Turns

A, B, C = (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)
ONE, TWO, THREE = SlicePrompt((A,)), SlicePrompt((A,), (B,)), SlicePrompt((A, C), (B,))


def state(value: float) -> State:
    return State(torch.full((4, 4), value).half(), value)


def filled() -> Session:
    session = Session()
    for number, prompt in enumerate((ONE, TWO, THREE)):
        session.remember("slice", prompt, state(number))
    return session


def test_the_remembered_prompts_that_are_extended_furthest_are_found() -> None:
    session = filled()
    found = session.recall("slice", SlicePrompt((A, C, B), (B,)))
    assert found is not None
    assert (found[0], found[1].score) == (THREE, 2)
    assert session.recall("slice", TWO) == (TWO, session.recall("slice", TWO)[1])


def test_other_prompts_slices_and_boxes_are_not_mistaken_for_it() -> None:
    session = filled()
    assert session.recall("slice", SlicePrompt((B,))) is None
    assert session.recall("other slice", ONE) is None
    assert session.recall("slice", SlicePrompt((A,), (B,), (0.0, 0.0, 5.0, 5.0))) is None


def test_undo_goes_back_one_request_at_a_time() -> None:
    session = filled()
    assert [session.undo() for _ in range(4)] == [TWO, ONE, None, None]
    assert session.recall("slice", THREE) is None


def test_undo_stays_on_its_slice() -> None:
    session = filled()
    session.remember("other slice", ONE, state(9))
    assert session.undo() is None
    assert session.undo() == TWO


def test_a_session_holds_so_many_states_and_no_more() -> None:
    session = Session(max_states=2)
    for number, prompt in enumerate((ONE, TWO, THREE)):
        session.remember("slice", prompt, state(number))
    assert session.recall("slice", ONE) is None
    assert session.nbytes == 2 * 32


def test_answers_to_volumes_are_bounded_in_bytes_and_what_they_share_counts_once() -> None:
    session, shared = Session(max_volume_bytes=3 * 32), state(0)
    first, second, third = (
        Answer({0: shared, 1: state(n)}, frozenset({0}), frozenset({0})) for n in range(3)
    )
    session.remember_volume("volume", ONE, first)
    session.remember_volume("volume", TWO, second)
    assert session.nbytes == 3 * 32
    assert session.recall_volume("volume", ONE) == (ONE, first)
    session.remember_volume("volume", THREE, third)
    assert session.recall_volume("volume", ONE) is None
    assert session.recall_volume("volume", THREE) == (THREE, third)
    assert session.recall_volume("other", THREE) is None


def test_users_images_and_labels_have_sessions_of_their_own() -> None:
    sessions = Sessions()
    mine = sessions.open("me", "image", "liver")
    assert sessions.open("me", "image", "liver") is mine
    assert all(
        sessions.open(*key) is not mine
        for key in (("you", "image", "liver"), ("me", "other", "liver"), ("me", "image", "spleen"))
    )


def test_idle_and_surplus_sessions_are_forgotten() -> None:
    now = [0.0]
    sessions = Sessions(max_sessions=2, idle_seconds=10, clock=lambda: now[0])
    first = sessions.open("me", "1")
    sessions.open("me", "2")
    sessions.open("me", "3")
    assert len(sessions) == 2
    assert sessions.open("me", "1") is not first
    now[0] = 11.0
    sessions.open("me", "4")
    assert len(sessions) == 1


def test_a_closed_session_is_begun_anew() -> None:
    sessions = Sessions()
    session = sessions.open("me", "image")
    sessions.close("me", "image")
    sessions.close("me", "image")
    assert sessions.open("me", "image") is not session


def test_turns_are_taken_in_the_order_in_which_they_were_asked_for() -> None:
    turns, order, threads = Turns(), [], []
    with turns.turn():
        for number in range(5):

            def wait(number: int = number) -> None:
                with turns.turn():
                    order.append(number)

            threads.append(threading.Thread(target=wait))
            threads[-1].start()
            while turns.waiting < number + 1:
                pass
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
