"""What users asked for on an object, step by step, so that they may go back and forth."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Step = TypeVar("Step")


class Histories(Generic[Step]):
    """Steps by whose they are, bounded in number: of the histories kept, and of the steps of each."""

    def __init__(self, most: int = 256, most_steps: int = 64) -> None:
        self.most, self.most_steps = most, most_steps
        self._kept: OrderedDict[Hashable, tuple[list[Step], list[Step]]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, whose: Hashable, step: Step) -> None:
        """A new step: those that were taken back are forgotten."""
        with self._lock:
            done, _ = self._kept.pop(whose, ([], []))
            self._kept[whose] = [*done, step][-self.most_steps :], []
            while len(self._kept) > self.most:
                self._kept.popitem(last=False)

    def back(self, whose: Hashable) -> Step | None:
        """Take the last step back; the one before it, or None when there is none."""
        with self._lock:
            done, undone = self._kept.get(whose, ([], []))
            if done:
                undone.append(done.pop())
            return done[-1] if done else None

    def again(self, whose: Hashable) -> Step | None:
        """The step that was taken back last, taken again; else the last one, or None when there is none."""
        with self._lock:
            done, undone = self._kept.get(whose, ([], []))
            if undone:
                done.append(undone.pop())
            return done[-1] if done else None

    def forget(self, whose: Hashable) -> None:
        """Forget all steps, if there are any."""
        with self._lock:
            self._kept.pop(whose, None)
