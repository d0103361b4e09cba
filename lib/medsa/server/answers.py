"""What a remote store said, for some seconds: asked once by many, and forgotten when we change the store."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from medsa.errors import MedsaError, NotFoundError, StoreUnavailableError
from medsa.server.privacy import frames

logger = logging.getLogger(__name__)

RENEWING = 4
"""Threads that renew old answers of one store, at most."""

Value = TypeVar("Value")


class _Answer(NamedTuple):
    value: Any
    given: float
    took: float


class Answers:
    """Answers by question, each believed for `live` seconds; at most `most` are kept. Safe to share.

    Who asks while somebody else waits for the same answer gets that one, or its error. What takes a store
    long to say is believed for ten times as long, up to `stale` seconds.
    """

    def __init__(self, live: float = 5.0, stale: float = 60.0, most: int = 4096) -> None:
        self.live, self.stale, self._most = live, stale, most
        self._known: OrderedDict[str, _Answer] = OrderedDict()
        self._asked: dict[tuple[str, int], Future[Any]] = {}
        self._due: OrderedDict[str, Callable[[], Any]] = OrderedDict()
        self._renewing = 0
        self._epoch = 0
        self._lock = threading.Lock()

    def get(self, question: str, ask: Callable[[], Value]) -> Value:
        """The answer, while it is believed, or a new one; what `ask` raises is raised."""
        with self._lock:
            known = self._known.get(question)
        if known is not None and self._is_believed(known):
            return known.value
        return self._renew(question, ask)

    def get_now(self, question: str, ask: Callable[[], Value]) -> Value:
        """As `get`, but up to `stale` seconds old; an old one is renewed for whoever asks next.

        It is given on while the store is away, and dropped when `ask` raises `NotFoundError`.
        """
        with self._lock:
            known = self._known.get(question)
            waiting = (question, self._epoch) in self._asked
        if known is None:
            return self._renew(question, ask)
        if self._is_believed(known):
            return known.value
        if time.monotonic() - known.given < self.stale:
            if not waiting:
                self._renew_soon(question, ask)
            return known.value
        try:
            return self._renew(question, ask)
        except StoreUnavailableError:
            with self._lock:
                self._known[question] = known._replace(given=time.monotonic())
            return known.value

    def forget(self, question: str | None = None) -> None:
        """An answer, or every one, is out of date; those on their way are too."""
        with self._lock:
            self._epoch += 1
            if question is None:
                self._known.clear()
                self._due.clear()
            else:
                self._known.pop(question, None)
                self._due.pop(question, None)

    def _is_believed(self, answer: _Answer) -> bool:
        return time.monotonic() - answer.given < max(self.live, min(10 * answer.took, self.stale))

    def _renew_soon(self, question: str, ask: Callable[[], Any]) -> None:
        with self._lock:
            self._due[question] = ask
            if self._renewing == RENEWING:
                return
            self._renewing += 1
        threading.Thread(target=self._renew_due, name="answers", daemon=True).start()

    def _renew_due(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._renewing -= 1
                    return
                question, ask = self._due.popitem(last=False)
            try:
                self._renew(question, ask)
            except MedsaError:
                continue  # whoever needs it anew will be told
            except Exception as error:  # noqa: BLE001 - nobody waits for it, and the others are still due
                logger.warning(f"an answer was not renewed\n{frames(error)}")

    def _renew(self, question: str, ask: Callable[[], Value]) -> Value:
        with self._lock:
            key = (question, self._epoch)
            waiting = self._asked.get(key)
            if waiting is None:
                answer = self._asked[key] = Future()
        if waiting is not None:
            return waiting.result()
        asked = time.monotonic()
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
                now = time.monotonic()
                self._known[question] = _Answer(value, now, now - asked)
                self._known.move_to_end(question)
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
        answer.set_result(value)
        return value
