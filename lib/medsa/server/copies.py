"""Files made of what a remote store holds, for clients that want files; each can be made again."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

MOST_BYTES = 10 << 30
IN_USE = 6 * 3600.0
"""Seconds after its last use for which a copy stays: an archive of all of them takes its time."""


class Copies:
    """Copies in `folder`, which is made when it is first needed.

    Of more than `most` bytes those go that were not used for longest. What cannot be removed is logged once.
    """

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self._folder, self._most, self._failed = folder, most, False

    def get(self, image: str, state: str, make: Callable[[Path], object]) -> Path:
        """A NIfTI file of `image`, written by `make` unless it is there for the same `state`."""
        path = self._folder / f"{_digest(image)}-{_digest(state)}.nii.gz"
        with suppress(FileNotFoundError):
            os.utime(path)
            return path
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make(path)
        self._make_room()
        return path

    def keep_only(self, images: Iterable[str]) -> None:
        """Remove the copies of all images but these."""
        kept = {_digest(image) for image in images}
        try:
            for path, _, used in self._files():
                if path.name.split("-")[0] not in kept:
                    _remove(path, used)
        except OSError as error:
            if not self._failed:
                logger.warning(f"old copies of images stay on this disk: {error.strerror}")
            self._failed = True
        else:
            self._failed = False

    def _make_room(self) -> None:
        files = sorted(self._files(), key=lambda file: file[2])
        surplus = sum(size for _, size, _ in files) - self._most
        for path, size, used in files:
            if surplus <= 0:
                break
            _remove(path, used)
            surplus -= size

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        """Each file, its bytes and when it was last used; half-written ones of a process that died, too."""
        for path in self._folder.glob("*"):
            with suppress(FileNotFoundError):
                state = path.stat()
                yield path, state.st_size, state.st_mtime


def _remove(path: Path, used: float) -> None:
    if time.time() - used > IN_USE:
        path.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
