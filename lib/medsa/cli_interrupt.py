"""Ctrl-C ends every command, whatever a library made of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event

_INTERRUPTED = Event()


@contextmanager
def ctrl_c_is_never_lost() -> Iterator[None]:
    """Within it Ctrl-C ends in `KeyboardInterrupt`, also where a library turned that into something else.

    A native module that is interrupted while it is imported says `ImportError`, or goes on without a part.
    Work then runs to its end unless it asks `interrupted()` now and then.
    """
    _INTERRUPTED.clear()

    def arrived(*_: object) -> None:
        _INTERRUPTED.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, arrived)
    try:
        yield
    except Exception:
        if interrupted():
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted():
        raise KeyboardInterrupt


def interrupted() -> bool:
    """Whether Ctrl-C was pressed while this command ran."""
    return _INTERRUPTED.is_set()
