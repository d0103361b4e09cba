"""What is remembered between the clicks of one user on one label of one image; nobody else's clicks matter.

A remembered state is the answer to the ordered prompts of one slice. A request that repeats them gets the
same answer; one that adds prompts starts from it; one that holds fewer (a client's undo) finds the earlier.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Begun = TypeVar("Begun")
Point = tuple[float, ...]
Box = tuple[float, ...]


@dataclass(frozen=True)
class SlicePrompt:
    """The prompts of one slice in model pixels (x, y), in the order they were set; hashable."""

    foreground: tuple[Point, ...] = ()
    background: tuple[Point, ...] = ()
    box: Box | None = None

    def __len__(self) -> int:
        return len(self.foreground) + len(self.background) + (self.box is not None)

    def extends(self, other: SlicePrompt) -> bool:
        """True when this holds all prompts of `other`, in the same order, and perhaps more points."""
        return (
            self.box == other.box
            and self.foreground[: len(other.foreground)] == other.foreground
            and self.background[: len(other.background)] == other.background
        )


@dataclass(frozen=True)
class State:
    """The answer to a slice's prompts: `logits` (h, w) float16 of the whole square, `score` predicted IoU."""

    logits: Tensor
    score: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w), where the object is more likely than not."""
        return (self.logits > 0).numpy()

    def agreement(self, other: State) -> float:
        """Dice of the two masks; 1 when both are empty."""
        here, there = self.mask, other.mask
        total = int(here.sum() + there.sum())
        return 2 * int((here & there).sum()) / total if total else 1.0


@dataclass(frozen=True)
class Answer:
    """What was answered to the prompts of a volume: `states` by slice.

    `anchors` are the slices from which the object was followed, `settled` those and the ones that were
    corrected since: what a user has spoken about.
    """

    states: Mapping[int, State]
    anchors: frozenset[int]
    settled: frozenset[int]


class Session:
    """States of one user's label on one image, newest last: so many of slices, so many bytes of volumes.

    The newest answer to a volume is kept however large it is.
    """

    def __init__(self, max_states: int = 32, max_volume_bytes: int = 32 * 2**20) -> None:
        self.max_states, self.max_volume_bytes = max_states, max_volume_bytes
        self._volumes: OrderedDict[tuple[Hashable, SlicePrompt], Answer] = OrderedDict()
        self._states: OrderedDict[tuple[Hashable, SlicePrompt], State] = OrderedDict()
        self._begun: tuple[str, Any] | None = None
        self._lock = threading.Lock()

    def begun(self, name: str, make: Callable[[], Begun]) -> Begun:
        """What `make()` gave when `name` was first asked for: a mask to begin with, read once a session."""
        if self._begun is None or self._begun[0] != name:
            self._begun = name, make()
        found: Begun = self._begun[1]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the remembered logits."""
        with self._lock:
            return sum(state.logits.nbytes for state in self._states.values()) + self._volume_bytes()

    def _volume_bytes(self) -> int:
        """Bytes of the logits of volumes; those that several answers share count once."""
        states = {id(state): state for answer in self._volumes.values() for state in answer.states.values()}
        return sum(state.logits.nbytes for state in states.values())

    def remember(self, slice_key: Hashable, prompt: SlicePrompt, state: State) -> None:
        """Keep the answer to `prompt` on the slice whose embedding has `slice_key`."""
        with self._lock:
            self._states[slice_key, prompt] = state
            self._states.move_to_end((slice_key, prompt))
            while len(self._states) > self.max_states:
                self._states.popitem(last=False)

    def recall(self, slice_key: Hashable, prompt: SlicePrompt) -> tuple[SlicePrompt, State] | None:
        """The remembered prompts that `prompt` extends furthest (or itself), and their answer, or None."""
        with self._lock:
            known = [p for key, p in self._states if key == slice_key and prompt.extends(p)]
            if not known:
                return None
            best = max(known, key=len)
            return best, self._states[slice_key, best]

    def remember_volume(self, key: Hashable, prompt: SlicePrompt, answer: Answer) -> None:
        """Keep the answer to all prompts of a volume, points (i, j, k)."""
        with self._lock:
            self._volumes[key, prompt] = answer
            self._volumes.move_to_end((key, prompt))
            while len(self._volumes) > 1 and self._volume_bytes() > self.max_volume_bytes:
                self._volumes.popitem(last=False)

    def recall_volume(self, key: Hashable, prompt: SlicePrompt) -> tuple[SlicePrompt, Answer] | None:
        """The remembered prompts that `prompt` extends furthest (or itself), and their answer, or None."""
        with self._lock:
            known = [p for at, p in self._volumes if at == key and prompt.extends(p)]
            if not known:
                return None
            best = max(known, key=len)
            return best, self._volumes[key, best]

    def undo(self) -> SlicePrompt | None:
        """Forget the newest answer; the prompts of the one before it on the same slice, or None."""
        with self._lock:
            if not self._states:
                return None
            (slice_key, _), _ = self._states.popitem()
            return next((p for key, p in reversed(self._states) if key == slice_key), None)


class Sessions:
    """The sessions of all users, by (user, image uid, label): bounded in number and in idle time."""

    def __init__(
        self,
        max_sessions: int = 64,
        idle_seconds: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.max_sessions = max_sessions
        self.idle_seconds = idle_seconds
        self._clock = clock
        self._sessions: OrderedDict[tuple[str, str, str], tuple[float, Session]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self, user: str, image: str, label: str = "") -> Session:
        """The session of this user on this image and label; a new one when there is none (any more)."""
        key, now = (user, image, label), self._clock()
        with self._lock:
            _, session = self._sessions.pop(key, (now, Session()))
            self._sessions[key] = (now, session)
            while len(self._sessions) > self.max_sessions or self._oldest() < now - self.idle_seconds:
                self._sessions.popitem(last=False)
            return session

    def close(self, user: str, image: str, label: str = "") -> None:
        """Forget one session, if there is one."""
        with self._lock:
            self._sessions.pop((user, image, label), None)

    def _oldest(self) -> float:
        return next(iter(self._sessions.values()))[0]
