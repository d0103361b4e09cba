"""Work ahead: while nobody waits, the slices around the last click are encoded before they are asked for."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from medsa.data.volume import Volume
from medsa.prompts.prompt import Prompt
from medsa.segmenter.request import Request
from medsa.segmenter.runtime import Segmenter

logger = logging.getLogger(__name__)

SHARE = 0.25
"""Part of the cache that the slices around one click may take."""
QUIET = 0.4
"""Seconds without any request before work ahead goes on."""
MOST = 64


@dataclass(frozen=True)
class Wish:
    """A slice that somebody may click on next."""

    segmenter: Segmenter
    volume: Volume
    window: str
    k: int


class Ahead:
    """A thread that fulfils wishes, the newest click's nearest slices first. Any request comes before it.

    `reach` slices on each side of a click are wished for. It starts with the first wish and ends with
    `close`, or with the interpreter.
    """

    def __init__(self, reach: int, quiet: float = QUIET) -> None:
        self.reach, self.quiet = reach, quiet
        self._wishes: deque[Wish] = deque(maxlen=MOST)
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def around(self, segmenter: Segmenter, volume: Volume, window: str, k: int) -> None:
        """Wish for the slices around slice k, which has just been encoded."""
        room = int(SHARE * segmenter.cache.max_bytes / segmenter.bytes_of_a_slice) // 2
        near = [k + way * far for far in range(1, min(self.reach, room) + 1) for way in (1, -1)]
        with self._changed:
            if self._closed:
                return
            self._wishes.extend(
                Wish(segmenter, volume, window, at) for at in reversed(near) if 0 <= at < volume.shape[2]
            )
            self._begin()

    def study(self, segmenter: Segmenter, volume: Volume, window: str) -> None:
        """Wish for the slices about the middle of a study that may be opened next, after all other wishes."""
        room = int(SHARE * segmenter.cache.max_bytes / segmenter.bytes_of_a_slice)
        count = volume.shape[2]
        middle = sorted(range(count), key=lambda k: abs(2 * k - count + 1))
        with self._changed:
            if self._closed:
                return
            for k in middle[: min(room, MOST - len(self._wishes))]:
                self._wishes.appendleft(Wish(segmenter, volume, window, k))
            self._begin()

    def _begin(self) -> None:
        """There are wishes: see to it that somebody fulfils them."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="work ahead", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        self._changed.notify_all()

    def close(self) -> None:
        """End when the slice at hand is done; what is still wished for is forgotten."""
        with self._changed:
            self._closed = True
            self._wishes.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def wait_until_done(self, seconds: float) -> bool:
        """True when no wish is left within so many seconds: for tests and measurements."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._wishes, seconds)

    def _work(self) -> None:
        while (wish := self._next()) is not None:
            try:
                seen, orientation = wish.segmenter.seen(wish.volume)
                at = orientation.slice_of(wish.k)
                Request(wish.segmenter, seen, Prompt(), wish.window, None).encoded(at, ahead=True)
            except Exception as error:  # noqa: BLE001 - nobody asked for it, and the next wish may be fulfilled
                logger.warning(f"a slice could not be encoded ahead ({type(error).__name__})")
            with self._changed:
                with suppress(ValueError):  # forgotten meanwhile
                    self._wishes.remove(wish)
                self._changed.notify_all()

    def _next(self) -> Wish | None:
        """The newest wish, as soon as it has been quiet for long enough; None at the end."""
        with self._changed:
            while not self._closed:
                if not self._wishes:
                    self._changed.wait()
                    continue
                segmenter = self._wishes[-1].segmenter
                used = max(segmenter.encoding.used, segmenter.decoding.used)
                rest = self.quiet - (time.monotonic() - used)
                if rest <= 0:
                    return self._wishes[-1]
                self._changed.wait(rest)
            return None
