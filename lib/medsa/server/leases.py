"""Who has which study: offered to somebody, or clicked on by somebody lately."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CLICKED = 300.0
"""Seconds for which a study that was clicked on counts as being worked on."""


@dataclass(frozen=True)
class Free:
    """Images that may be offered, none perhaps, and a sentence when somebody works on them."""

    images: Sequence[str]
    warning: str = ""


class Leases:
    """What was offered belongs to whom it was offered for so many seconds, or until it is labelled."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._offered: dict[str, tuple[str, float]] = {}
        self._clicked: dict[str, tuple[str, float]] = {}

    def offer(self, image: str, who: str) -> None:
        """It is theirs now."""
        self._offered[image] = who, self._clock()

    def clicked(self, image: str, who: str) -> None:
        """They are at work on it."""
        self._clicked[image] = who, self._clock()

    def end(self, image: str) -> None:
        """It has a label."""
        self._offered.pop(image, None)
        self._clicked.pop(image, None)

    def held(self) -> list[str]:
        """What is offered or worked on now."""
        self._forget()
        return [*self._offered, *(image for image in self._clicked if image not in self._offered)]

    def free(self, images: Sequence[str], who: str) -> Free:
        """What may be offered to `who`: first what nobody has; then what is clicked on; then what they had.

        Never what was offered to somebody else.
        """
        self._forget()
        mine = [image for image in images if self._offered.get(image, (who,))[0] == who]
        new = [image for image in mine if image not in self._offered]
        quiet = [image for image in new if image not in self._clicked]
        if quiet:
            return Free(quiet)
        others = [image for image in new if self._clicked[image][0] != who]
        if new:
            return Free(new, "somebody clicked on it lately" if others else "")
        return Free(sorted(mine, key=lambda image: self._offered[image][1])[:1])

    def _forget(self) -> None:
        now = self._clock()
        for known, most in ((self._offered, self.seconds), (self._clicked, CLICKED)):
            for image in [image for image, (_, since) in list(known.items()) if now - since > most]:
                known.pop(image, None)
