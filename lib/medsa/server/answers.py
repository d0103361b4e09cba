"""What a remote store said, for some seconds: asked once by many, and forgotten when we change the store."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from medsa.errors import MedsaError, NotFoundError

Value = TypeVar("Value")


class Answers:
    """Answers by question, each true for `live` seconds; at most `most` are kept. Safe to share.

    Who asks while somebody else waits for the same answer gets that one, or its error.
    """

    def __init__(self, live: float = 5.0, most: int = 4096) -> None:
        self.live, self._most = live, most
        self._known: OrderedDict[str, tuple[float, Any]] = OrderedDict()
        self._asked: dict[tuple[str, int], Future[Any]] = {}
        self._epoch = 0
        self._lock = threading.Lock()

    def get(self, question: str, ask: Callable[[], Value]) -> Value:
        """The answer, at most `live` seconds old; what `ask` raises is raised."""
        with self._lock:
            known = self._known.get(question)
        if known is not None and time.monotonic() - known[0] < self.live:
            return known[1]
        return self._renew(question, ask)

    def get_now(self, question: str, ask: Callable[[], Value]) -> Value:
        """As `get`, but an answer that is too old is given at once and renewed for whoever asks next.

        It is given on while the store is away, and dropped when `ask` raises `NotFoundError`.
        """
        with self._lock:
            known = self._known.get(question)
            waiting = (question, self._epoch) in self._asked
        if known is None:
            return self._renew(question, ask)
        if not waiting and time.monotonic() - known[0] >= self.live:
            threading.Thread(target=self._renew_quietly, args=(question, ask), daemon=True).start()
        return known[1]

    def forget(self) -> None:
        """All answers are out of date, those on their way too."""
        with self._lock:
            self._epoch += 1
            self._known.clear()

    def _renew_quietly(self, question: str, ask: Callable[[], Any]) -> None:
        with suppress(MedsaError):
            self._renew(question, ask)

    def _renew(self, question: str, ask: Callable[[], Value]) -> Value:
        with self._lock:
            key = (question, self._epoch)
            waiting = self._asked.get(key)
            if waiting is None:
                answer = self._asked[key] = Future()
        if waiting is not None:
            return waiting.result()
        try:
            value = ask()
        except BaseException as error:
            with self._lock:
                del self._asked[key]
                if isinstance(error, NotFoundError):
                    self._known.pop(question, None)
            answer.set_exception(error)
            raise
        with self._lock:
            del self._asked[key]
            if key[1] == self._epoch:
                self._known[question] = (time.monotonic(), value)
                self._known.move_to_end(question)
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        answer.set_result(value)
        return value
