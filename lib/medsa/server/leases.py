"""Who has which study: offered to somebody, or clicked on by somebody lately."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsa.active.book import hashed
from medsa.files import write_atomically

logger = logging.getLogger(__name__)

CLICKED = 300.0
"""Seconds for which a study that was clicked on counts as being worked on."""


@dataclass(frozen=True)
class Free:
    """Images that may be offered, none perhaps, and a sentence when somebody works on them."""

    images: Sequence[str]
    warning: str = ""


class Leases:
    """What was offered belongs to whom it was offered for so many seconds, or until it is labelled.

    Offers are kept in the private file at `path`, made when something is offered, for the next server; to
    whom, as a hash, since that may hold a browser's cookie.
    """

    def __init__(self, seconds: float, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.seconds, self.path, self._clock = seconds, path, clock
        self._offered = _read(path)
        self._clicked: dict[str, tuple[str, float]] = {}
        self._writing = threading.Lock()

    def offer(self, image: str, who: str) -> None:
        """It is theirs now."""
        self._offered[image] = hashed(who), self._clock()
        self._write()

    def clicked(self, image: str, who: str) -> None:
        """They are at work on it."""
        self._clicked[image] = who, self._clock()

    def end(self, image: str) -> None:
        """It has a label."""
        self._clicked.pop(image, None)
        if self._offered.pop(image, None):
            self._write()

    def held(self) -> list[str]:
        """What is offered or worked on now."""
        self._forget()
        return [*self._offered, *(image for image in self._clicked if image not in self._offered)]

    def free(self, images: Sequence[str], who: str) -> Free:
        """What may be offered to `who`: first what nobody has; then what is clicked on; then what they had.

        Never what was offered to somebody else.
        """
        self._forget()
        mine = [image for image in images if self._offered.get(image, (hashed(who),))[0] == hashed(who)]
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
            for image in [image for image, (_, since) in list(known.items()) if abs(now - since) > most]:
                known.pop(image, None)

    def _write(self) -> None:
        self._forget()
        try:
            with self._writing:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(self._offered.copy()).encode())
        except OSError as error:  # a full disk: this server knows it all the same
            logger.warning(f"{self.path.name} cannot be written: {error.strerror}")


def _read(path: Path) -> dict[str, tuple[str, float]]:
    """What was offered, to whom and when; nothing, and a warning, where the file does not tell."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return {str(image): (str(who), float(since)) for image, (who, since) in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError):
        logger.warning(f"{path.name} cannot be read: what was offered before may be offered to others")
        return {}
