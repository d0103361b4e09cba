"""Temporary files: one private folder a process, emptied as requests end and removed with the process."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from filelock import BaseFileLock, FileLock

from medsa.config import cache_dir
from medsa.errors import BadInputError

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg", ".dcm")
LABEL_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".png", ".dcm")


@cache
def folder() -> Path:
    """The folder of this process, locked while it lives; what killed processes left is removed first."""
    root, locks = cache_dir() / "tmp", cache_dir() / "tmp.locks"
    for path in (root, locks):
        path.mkdir(mode=0o700, exist_ok=True)
    with FileLock(locks / ".lock", mode=0o600):
        for old in root.iterdir():
            with suppress(OSError), _lock(locks / old.name) as lock:  # held by whoever still lives
                _remove(old, lock)
        path = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=root))
        lock = _lock(locks / path.name)
        lock.acquire()
    atexit.register(_remove, path, lock)
    return path


def _lock(path: Path) -> BaseFileLock:
    return FileLock(path, timeout=0, mode=0o600, thread_local=False)


def _remove(folder: Path, lock: BaseFileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        Path(lock.lock_file).unlink(missing_ok=True)


def ending(name: str | None, allowed: Sequence[str]) -> str:
    """The allowed ending of a file's name, lower case; raises `BadInputError` naming the allowed ones."""
    for candidate in allowed:
        if (name or "").lower().endswith(candidate):
            return candidate
    raise BadInputError(f"files of this kind are not taken; send one that ends in {', '.join(allowed)}")


def scratch_path(name: str) -> Path:
    """A new path for a file that stays until the process ends."""
    return Path(tempfile.mkdtemp(dir=folder())) / name


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of one's own for the time of a `with` block."""
    path = Path(tempfile.mkdtemp(dir=folder()))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def received(content: BinaryIO, name: str | None, allowed: Sequence[str]) -> Iterator[Path]:
    """An upload as a file with one of the `allowed` endings; the client's own name is not used."""
    with scratch() as path:
        target = path / f"upload{ending(name, allowed)}"
        with target.open("xb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
        if not target.stat().st_size:
            raise BadInputError("the uploaded file is empty")
        yield target
