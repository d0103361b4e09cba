"""A lock that is handed on in the order in which it was asked for; who does work ahead comes last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Waiters are served first come, first served, so that a long job lets clicks in between its steps.

    `used` is when a turn that somebody waits for last began or ended (`time.monotonic`).
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = self._served = 0
        self.used = -float("inf")

    @property
    def waiting(self) -> int:
        """How many wait for their turn while another holds it."""
        return max(0, self._next - self._served - 1)

    @contextmanager
    def turn(self, *, ahead: bool = False) -> Iterator[None]:
        """Wait for one's turn, hold it, hand it on. One taken `ahead` waits until nobody else does."""
        with self._condition:
            if ahead:
                self._condition.wait_for(lambda: self._next == self._served)
            else:
                self.used = time.monotonic()
            mine = self._next
            self._next += 1
            self._condition.wait_for(lambda: self._served == mine)
        try:
            yield
        finally:
            with self._condition:
                self._served += 1
                if not ahead:
                    self.used = time.monotonic()
                self._condition.notify_all()
