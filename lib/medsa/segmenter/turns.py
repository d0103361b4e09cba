"""A lock that is handed on in the order in which it was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Waiters are served first come, first served, so that a long job lets clicks in between its steps."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = self._served = 0

    @property
    def waiting(self) -> int:
        """How many wait for their turn while another holds it."""
        return max(0, self._next - self._served - 1)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn, hold it, hand it on."""
        with self._condition:
            mine = self._next
            self._next += 1
            self._condition.wait_for(lambda: self._served == mine)
        try:
            yield
        finally:
            with self._condition:
                self._served += 1
                self._condition.notify_all()
