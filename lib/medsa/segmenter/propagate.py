"""Follow-through: from the slices a user prompted outwards through the volume, until the object ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from medsa.errors import CancelledError

Answer = TypeVar("Answer")


def follow_through(
    anchors: Mapping[int, Answer],
    bounds: tuple[int, int],
    step: Callable[[int, Answer], Answer | None],
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[int, Answer]:
    """The answers of all slices the object reaches, by slice.

    `anchors` are the answers of the prompted slices, `bounds` the first and last slice to enter. `step(k,
    neighbour)` answers slice k from the answer of the slice beside it, None where the object has ended. From
    every anchor one front goes up and one down, in turns, so that two anchors meet halfway and where one side
    ends the other goes on. `progress(done, most)` is told after every slice. Raises `CancelledError` as soon
    as `cancelled()`.
    """
    low, high = bounds
    found = dict(anchors)
    fronts = [(k, way) for k in sorted(anchors) for way in (-1, 1)]
    while fronts:
        alive = []
        for k, way in fronts:
            beside = k + way
            if not low <= beside <= high or beside in found:
                continue
            stop_if(cancelled)
            answer = step(beside, found[k])
            if answer is None:
                continue
            found[beside] = answer
            alive.append((beside, way))
            if progress is not None:
                progress(len(found), high - low + 1)
        fronts = alive
    return dict(sorted(found.items()))


def stop_if(cancelled: Callable[[], bool] | None) -> None:
    """Raise `CancelledError` when `cancelled()`."""
    if cancelled is not None and cancelled():
        raise CancelledError("this request was overtaken by a newer one")
