"""What has been found out about the studies of a site, on disk: looks, scores, proposals against labels.

One SQLite file, 0600. Each study is written in one transaction as soon as it is done, so that a run that was
ended in whatever way goes on where it was. Studies stand under a hash of their id.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsa.active.scores import Components

_TABLES = """
CREATE TABLE IF NOT EXISTS studies (
    study TEXT PRIMARY KEY, content TEXT, encoder TEXT, look BLOB,
    model TEXT, asked TEXT, found TEXT, held TEXT
);
CREATE TABLE IF NOT EXISTS proposals (
    study TEXT, state TEXT, moment TEXT, version TEXT, source TEXT, dice TEXT, PRIMARY KEY (study, state)
);
"""


@dataclass(frozen=True)
class Page:
    """A study: its `look` (D,) as `encoder` sees its `content`, and what `model` says of the labels `asked`.

    `components` by label and `held` are those of `scores.Examined`.
    """

    content: str
    encoder: str
    look: NDArray[np.float32]
    model: str = ""
    asked: frozenset[str] = frozenset()
    components: Mapping[str, Components] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """How near the model's proposal came to what a person saved: Dice by label.

    `moment` is a date as ISO 8601 writes it, `version` the adapter that proposed; `source` is "original" for
    a label that was pre-annotated, "computed" for one that was made when the person had saved.
    """

    moment: str
    version: str
    source: str
    dice: Mapping[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.dice.values())))


class Book:
    """The file at `path`, made when something is written. Threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def stamp(self) -> tuple[int, int]:
        """What changes when something is written."""
        try:
            state = self.path.stat()
        except OSError:
            return 0, 0
        return state.st_mtime_ns, state.st_size

    def write(self, pages: Mapping[str, Page]) -> None:
        """Put down what is known of studies, by their ids, in the place of what was; all of it or nothing."""
        rows = [
            (
                hashed(study), page.content, page.encoder, page.look.astype("<f4").tobytes(), page.model,
                json.dumps(sorted(page.asked)), json.dumps(page.components), json.dumps(page.held),
            )
            for study, page in pages.items()
        ]  # fmt: skip
        with self._open() as file:
            file.executemany("REPLACE INTO studies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def pages(self) -> dict[str, Page]:
        """Every study that something is known of, by the hash of its id."""
        columns = "study, content, encoder, look, model, asked, found, held"
        return {
            study: Page(
                content, encoder, np.frombuffer(look, "<f4"), model,
                frozenset(json.loads(asked)), json.loads(found), json.loads(held),
            )
            for study, content, encoder, look, model, asked, found, held in self._read(
                f"SELECT {columns} FROM studies"  # noqa: S608 - a constant
            )
        }  # fmt: skip

    def keep_only(self, studies: Collection[str]) -> None:
        """Forget the pages of all other studies; what was proposed stays, without a name it hurts nobody."""
        gone = {study for (study,) in self._read("SELECT study FROM studies")} - set(map(hashed, studies))
        if gone:
            with self._open() as file:
                file.executemany("DELETE FROM studies WHERE study = ?", [(study,) for study in gone])

    def propose(self, study: str, state: str, proposal: Proposal) -> None:
        """Keep how a proposal compares with the label `state` of a study; once for each label."""
        row = (proposal.moment, proposal.version, proposal.source, json.dumps(proposal.dice))
        with self._open() as file:
            file.execute("INSERT OR IGNORE INTO proposals VALUES (?, ?, ?, ?, ?, ?)",
                         (hashed(study), hashed(state), *row))  # fmt: skip

    def compared(self) -> set[tuple[str, str]]:
        """The studies and the states of their labels, both hashed, that were compared."""
        return {(study, state) for study, state in self._read("SELECT study, state FROM proposals")}

    def proposals(self) -> list[Proposal]:
        """All of them, the oldest first: the site's learning curve."""
        rows = self._read("SELECT moment, version, source, dice FROM proposals ORDER BY moment, study")
        return [Proposal(moment, version, source, json.loads(dice)) for moment, version, source, dice in rows]

    def _read(self, query: str) -> list[tuple]:
        if not self.path.is_file():
            return []
        with self._open() as file:
            return file.execute(query).fetchall()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection with a transaction that is kept when nothing is raised."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        with closing(sqlite3.connect(self.path, timeout=60)) as file, file:
            file.executescript(_TABLES)
            yield file


def hashed(text: str) -> str:
    """What stands for a study in the book."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
