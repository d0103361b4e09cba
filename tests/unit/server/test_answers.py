"""A store is asked once by many; its answers hold for some seconds, and never past a change of ours."""

import threading
import time
from functools import partial

import pytest

from medsa.errors import NotFoundError, StoreUnavailableError
from medsa.server.answers import RENEWING, Answers


def test_an_answer_is_believed_for_a_while_and_then_asked_for_again():
    answers, asked = Answers(live=0.05), []
    for _ in range(3):
        answers.get("images", lambda: asked.append(1))
    assert len(asked) == 1
    time.sleep(0.06)
    answers.get("images", lambda: asked.append(1))
    assert len(asked) == 2


def test_what_takes_a_store_long_to_say_is_believed_for_longer():
    answers, asked = Answers(live=0.02), []
    for _ in range(2):
        answers.get("images", lambda: asked.append(time.sleep(0.1)))
        time.sleep(0.04)
    assert len(asked) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_many_that_ask_at_once_wait_for_one_answer_or_one_error(fails):
    answers, asked, got, asking = Answers(), [], [], threading.Event()

    def ask():
        asked.append(1)
        asking.wait(10)
        if fails:
            raise StoreUnavailableError("away")
        return "answer"

    def client():
        try:
            got.append(answers.get("images", ask))
        except StoreUnavailableError as error:
            got.append(str(error))

    threads = [threading.Thread(target=client) for _ in range(5)]
    for thread in threads:
        thread.start()
    while not asked:
        time.sleep(0.001)
    time.sleep(0.05)
    asking.set()
    for thread in threads:
        thread.join(10)
    assert got == ["away" if fails else "answer"] * 5
    assert len(asked) == 1


def test_an_answer_on_its_way_while_we_change_the_store_is_not_believed():
    answers = Answers()

    def overtaken():
        answers.forget()
        return "before the change"

    assert answers.get("labels", overtaken) == "before the change"
    assert answers.get("labels", lambda: "after the change") == "after the change"


def test_an_old_answer_is_given_at_once_and_renewed_behind_the_clients_back():
    answers, renewed = Answers(live=0.0), threading.Event()
    answers.get_now("series", lambda: 1)

    def ask():
        renewed.set()
        return 2

    deadline = time.monotonic() + 10
    while not renewed.is_set() and time.monotonic() < deadline:
        assert answers.get_now("series", ask) in (1, 2)
    assert renewed.is_set()
    while answers.get_now("series", ask) == 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert answers.get_now("series", ask) == 2


def test_many_old_answers_are_renewed_by_a_few_threads():
    answers, renewed, gate = Answers(live=0.0), set(), threading.Event()
    questions = [str(number) for number in range(100)]
    for question in questions:
        answers.get_now(question, lambda: "old")

    def ask(question):
        gate.wait(10)
        renewed.add(question)
        if question == "50":
            raise ValueError("what nobody foresaw")
        return "new"

    before = threading.active_count()
    for _ in range(2):
        for question in questions:
            assert answers.get_now(question, partial(ask, question)) == "old"
    assert threading.active_count() - before <= RENEWING
    gate.set()
    deadline = time.monotonic() + 10
    while len(renewed) < 100 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert renewed == set(questions)
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("error", "kept"), [(StoreUnavailableError("away"), True), (NotFoundError("gone"), False)]
)
def test_what_is_gone_is_dropped_and_what_cannot_be_asked_serves_on(error, kept):
    answers, asked = Answers(live=0.0), []
    answers.get_now("series", lambda: 1)

    def ask():
        asked.append(1)
        raise error

    def ask_until(enough):
        for _ in range(2000):
            if enough():
                return
            answers.get_now("series", ask)
            time.sleep(0.005)

    if kept:
        ask_until(lambda: len(asked) > 3)
        answers.stale = 0.0
        assert answers.get_now("series", ask) == 1
        assert len(asked) > 3
    else:
        with pytest.raises(NotFoundError):
            ask_until(lambda: False)


def test_what_is_too_old_is_asked_for_before_it_is_given():
    answers = Answers(live=0.0, stale=0.0)
    assert answers.get_now("series", lambda: 1) == 1
    assert answers.get_now("series", lambda: 2) == 2


def test_one_answer_can_be_forgotten_alone():
    answers = Answers()
    for question in ("images", "labels"):
        answers.get(question, lambda: "old")
    answers.forget("labels")
    assert answers.get("images", lambda: "new") == "old"
    assert answers.get("labels", lambda: "new") == "new"


def test_no_more_answers_are_kept_than_asked_for():
    answers = Answers(most=3)
    for number in range(10):
        answers.get(str(number), lambda: None)
    assert len(answers._known) == 3
    assert not answers._asked
