"""Adapter versions of one site: folders that stay, a pointer to the served one, a log of every decision.

    STORE/v0001/{adapter.safetensors, card.json, report.json}   a version; never changed once it has its name
    STORE/current                                               JSON: which is served, and what was before it
    STORE/decisions.jsonl                                       one line a decision, with its figures

A version gets its name by a rename when all of it is on disk, and a rename replaces the pointer: a crash
at any moment leaves a whole version served. Processes may share a store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from medsa.adapters.state import CARD, TENSORS, Card, read_card
from medsa.config import data_dir
from medsa.errors import ConfigurationError, NotFoundError
from medsa.files import write_atomically

REPORT = "report.json"
_POINTER, _LOG = "current", "decisions.jsonl"
_NAME = re.compile(r"v[0-9]{4,}")
_COMING = ".coming-"


@dataclass(frozen=True)
class Version:
    """One version: its name, its folder, and what `card.json` and `report.json` say of it."""

    name: str
    folder: Path
    card: Card
    report: Mapping[str, Any]


@dataclass(frozen=True)
class Pointer:
    """What is served: the last of `served`, none when it is empty (then what the server started with).

    `served` are the versions that were promoted and not taken back, oldest first. A `pinned` version is not
    replaced by retraining.
    """

    served: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def name(self) -> str | None:
        """The served version."""
        return self.served[-1] if self.served else None


class VersionStore:
    """The versions in `folder`, made 0700 when it is first written to.

    `lock` is held by whoever changes something; hold it to look and change as one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.lock = FileLock(self.folder / ".lock", mode=0o600)

    def names(self) -> list[str]:
        """All versions, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name))
        return sorted(found, key=lambda name: int(name[1:]))

    def get(self, name: str) -> Version:
        """The version called `name`; raises `NotFoundError` with the known ones, `WeightsError`."""
        if name not in self.names():
            raise NotFoundError(
                f"there is no version '{name}'; there are: {', '.join(self.names()) or 'none'}"
            )
        folder = self.folder / name
        return Version(name, folder, read_card(folder), _read_json(folder / REPORT))

    def pointer(self) -> Pointer:
        """What is served now; raises `ConfigurationError` when somebody else wrote to it."""
        path = self.folder / _POINTER
        if not path.is_file():
            return Pointer()
        try:
            content = json.loads(path.read_text("utf-8"))
            return Pointer(tuple(content["served"]), bool(content["pinned"]))
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(f"{path} is damaged: `medsa versions promote` writes it anew") from None

    def current(self) -> Version | None:
        """The served version, or None for what the server started with."""
        name = self.pointer().name
        return None if name is None else self.get(name)

    def add(self, candidate: Path, report: Mapping[str, Any]) -> Version:
        """Keep the adapter in the folder `candidate` as a new version, not yet served.

        Raises `NotFoundError` or `WeightsError` when it is no adapter.
        """
        read_card(candidate)
        self._make()
        with self.lock:
            for left in self.folder.glob(f"{_COMING}*"):  # of a process that was killed
                shutil.rmtree(left)
            coming = Path(tempfile.mkdtemp(prefix=_COMING, dir=self.folder))
            for name in (TENSORS, CARD):
                write_atomically(coming / name, (candidate / name).read_bytes())
            write_atomically(coming / REPORT, json.dumps(report, indent=1).encode())
            _to_disk(coming)
            name = f"v{int((self.names() or ['v0'])[-1][1:]) + 1:04d}"
            coming.rename(self.folder / name)
            _to_disk(self.folder)
        return self.get(name)

    def promote(self, name: str, *, pin: bool = False, by: str = "a person") -> Version:
        """Serve the version `name` from now on; with `pin` retraining does not replace it."""
        version = self.get(name)
        with self.lock:
            try:
                before = self.pointer()
            except ConfigurationError:
                before = Pointer()
            self._log({"event": "promoted", "version": name, "by": by, "pinned": pin, "before": before.name})
            self._move(Pointer((*(n for n in before.served if n != name), name), pin))
        return version

    def rollback(self, *, by: str = "a person") -> Version | None:
        """Serve what was served before the current version; None for what the server started with.

        Raises `NotFoundError` when no version is served.
        """
        if self.pointer().name is None:
            raise NotFoundError("no version is served: there is nothing to take back")
        with self.lock:
            pointer = self.pointer()
            after = Pointer(pointer.served[:-1])
            self._log({"event": "rolled back", "version": after.name, "by": by, "before": pointer.name})
            self._move(after)
        return self.current()

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add a decision to the log."""
        self._make()
        with self.lock:
            self._log(entry)

    def decisions(self) -> list[dict[str, Any]]:
        """Everything in the log, oldest first; a line that a crash cut off is left out."""
        path = self.folder / _LOG
        if not path.is_file():
            return []
        found = []
        for line in path.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def _make(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _move(self, pointer: Pointer) -> None:
        content = json.dumps({"served": pointer.served, "pinned": pointer.pinned})
        write_atomically(self.folder / _POINTER, content.encode())
        _to_disk(self.folder)

    def _log(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps({"when": datetime.now(UTC).isoformat(timespec="seconds"), **entry})
        handle = os.open(self.folder / _LOG, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            cut_off = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
            file.write(f"{chr(10) if cut_off else ''}{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())


def versions_folder(studies: str, backbone: str) -> Path:
    """Where the versions of a datastore are kept when nobody says where: not made here."""
    where = studies.rstrip("/") if "://" in studies else str(Path(studies).resolve())
    where = re.sub("(?<=://)[^/@]*@", "", where)  # a login is no part of the place
    digest = hashlib.sha256(f"{where} {backbone}".encode()).hexdigest()[:16]
    return data_dir() / "versions" / digest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _to_disk(folder: Path) -> None:
    """Names in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
