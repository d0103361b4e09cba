"""Propagation: from the slices a user spoke about outwards through the volume, until the object ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TypeVar

from medsa.errors import CancelledError

Answer = TypeVar("Answer")


def follow_through(
    anchors: Mapping[int, Answer],
    bounds: tuple[int, int],
    step: Callable[[int, int, Answer], Answer | None],
    blend: Callable[[Answer, Answer, float], Answer],
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[int, Answer]:
    """The answers of all slices the object reaches, by slice.

    `anchors` are the answers of the slices to start from, `bounds` the first and last slice to enter. From
    every anchor the object is followed both ways, as far as the next anchor: `step(k, beside, neighbour)`
    answers slice k from the answer of slice `beside`, None where the object is not seen. It has ended when it
    is not seen on two slices in a row, or on the last one; a single slice that does not show it is blended of
    those on both sides. Between two anchors both ways are mixed: `blend(one, other, part)` with `part` (0..1)
    of the other, the nearer anchor weighing more; where only one way gets to, it answers alone.
    `progress(done, most)` is told after every slice. Raises `CancelledError` as soon as `cancelled()`.
    """
    known = sorted(anchors)
    entered = set(known)

    def towards(k: int, last: int) -> dict[int, Answer]:
        """From anchor k as far as slice `last` at most; anchor included."""
        way = 1 if last >= k else -1
        found, at = {k: anchors[k]}, k
        while at != last:
            for reached in (at + way, at + 2 * way):
                if (reached - last) * way > 0:
                    return found
                stop_if(cancelled)
                answer = step(reached, at, found[at])
                entered.add(reached)
                if progress is not None:
                    progress(len(entered), bounds[1] - bounds[0] + 1)
                if answer is not None:
                    break
            else:
                return found
            if reached != at + way:
                found[at + way] = blend(found[at], answer, 0.5)
            found[reached], at = answer, reached
        return found

    found = {**towards(known[0], bounds[0]), **towards(known[-1], bounds[1])}
    for below, above in pairwise(known):
        up, down = towards(below, above - 1), towards(above, below + 1)
        found |= down | up
        for k in (up.keys() & down.keys()) - {below, above}:
            found[k] = blend(up[k], down[k], (k - below) / (above - below))
    return dict(sorted({**found, **anchors}.items()))


def stop_if(cancelled: Callable[[], bool] | None) -> None:
    """Raise `CancelledError` when `cancelled()`."""
    if cancelled is not None and cancelled():
        raise CancelledError("this request was overtaken by a newer one")
