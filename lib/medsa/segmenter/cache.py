"""Values kept by the content they came from: encode once, click many; bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Whatever knows its memory: an embedding, a volume."""

    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class ContentCache(Generic[Value]):
    """The most recently used values, never more than `max_bytes` of them. Safe to share between threads.

    Two requests that need the same key at once compute it once. A computation that fails (or is cancelled)
    leaves nothing behind: whoever waited for it computes it anew.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, Value] = OrderedDict()
        self._bytes = 0
        self._busy: set[Hashable] = set()
        self._changed = threading.Condition()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable, make: Callable[[], Value]) -> tuple[Value, bool]:
        """The value of `key` and whether it was there; `make()` computes it, outside the cache's lock."""
        with self._changed:
            while True:
                if key in self._entries:
                    self._entries.move_to_end(key)
                    return self._entries[key], True
                if key not in self._busy:
                    break
                self._changed.wait()
            self._busy.add(key)
        try:
            value = make()
            self._put(key, value)
            return value, False
        finally:
            with self._changed:
                self._busy.discard(key)
                self._changed.notify_all()

    def _put(self, key: Hashable, value: Value) -> None:
        with self._changed:
            if value.nbytes > self.max_bytes:
                return
            while self._bytes + value.nbytes > self.max_bytes:
                self._bytes -= self._entries.popitem(last=False)[1].nbytes
            self._entries[key] = value
            self._bytes += value.nbytes

    def clear(self) -> None:
        """Forget everything."""
        with self._changed:
            self._entries.clear()
            self._bytes = 0
