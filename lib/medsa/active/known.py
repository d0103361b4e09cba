"""What the book says as arrays, ready before anybody asks: a pool of 5,000 studies in milliseconds."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from medsa.active.book import Book, Page, hashed
from medsa.active.coverage import Looks, comparable, nearest, typicality
from medsa.active.scores import joined
from medsa.active.strategies import Floats, Pool
from medsa.segmenter import Segmenter

_hashed = lru_cache(maxsize=100_000)(hashed)


def keys_of(segmenter: Segmenter, window: str) -> tuple[str, str]:
    """What looks and what scores depend on: the encoder as it sees, and the whole model."""
    sam = segmenter.sam
    encoder = f"{sam.digest} {sam.image_size} {sam.encoder_digest} {window}"
    return hashed(encoder), hashed(f"{encoder} {sam.adapter_digest}")


@dataclass(frozen=True)
class Known:
    """N studies, by the row of their hashed id: `looks` (N, D) of one encoder, scores of one model.

    NaN stands in the rows of studies whose look or score is another's, and stale.
    """

    rows: Mapping[str, int]
    looks: Looks
    typical: Floats
    unsure: Floats
    held: Floats
    by_label: Mapping[str, Floats]

    @classmethod
    def of(cls, pages: Mapping[str, Page], encoder: str, model: str) -> Known:
        """What `pages` hold of an encoder and a model."""
        rows = {study: n for n, study in enumerate(pages)}
        seen = np.array([page.encoder == encoder for page in pages.values()], bool)
        scored = [page if page.model == model else None for page in pages.values()]
        unsure, by_label = joined([page.components if page else {} for page in scored])
        held = [max(page.held.values(), default=np.nan) if page else np.nan for page in scored]
        looks, typical = np.full((len(rows), 1), np.nan, np.float32), np.full(len(rows), np.nan)
        if seen.any():
            found = comparable(np.stack([page.look for page in pages.values() if page.encoder == encoder]))
            looks = np.full((len(rows), found.shape[1]), np.nan, np.float32)
            looks[seen], typical[seen] = found, typicality(found)
        return cls(rows, looks, typical, unsure, np.array(held, dtype=float), by_label)

    def at(self, studies: Sequence[str]) -> NDArray[np.intp]:
        """The rows of studies; -1 for one that nothing is known of."""
        return np.array([self.rows.get(_hashed(study), -1) for study in studies], np.intp)

    def pool(
        self, studies: Sequence[str], novel: Floats, labelled: int, counts: Mapping[str, int] | None = None
    ) -> Pool:
        """The pool of `studies`; `novel` (N,) belongs to the rows."""
        at = self.at(studies)

        def taken(values: NDArray) -> NDArray:
            known = np.full((len(at), *values.shape[1:]), np.nan, values.dtype)
            known[at >= 0] = values[at[at >= 0]]
            return known

        return Pool(
            taken(self.unsure), taken(self.held), taken(self.typical), taken(novel), taken(self.looks),
            {label: taken(values) for label, values in self.by_label.items()}, labelled, counts or {},
        )  # fmt: skip


class Novelty:
    """How far each known study is from the nearest covered one; only what has changed is computed."""

    def __init__(self, known: Known, covered: Sequence[str] = ()) -> None:
        self.known = known
        self.covered = covered
        """What was asked about last."""
        self._rows: frozenset[int] = frozenset()
        self._far, self._whose = nearest(known.looks, known.looks[:0])
        self.of(covered)

    def of(self, covered: Sequence[str]) -> Floats:
        """(N,) for all rows, when these studies are covered; infinite without any."""
        unseen = np.isnan(self.known.looks[:, 0])
        rows = frozenset(n for n in self.known.at(covered).tolist() if n >= 0 and not unseen[n])
        if gone := self._rows - rows:
            lost = np.flatnonzero(np.isin(self._whose, list(gone)))
            self._far[lost] = np.inf
            self._cover(lost, self._rows & rows)
        self._cover(np.arange(len(unseen)), rows - self._rows)
        self.covered, self._rows = covered, rows
        return np.where(unseen, np.nan, self._far)

    def _cover(self, studies: NDArray[np.intp], by: frozenset[int]) -> None:
        if not by:
            return
        rows = np.array(sorted(by))
        far, which = nearest(self.known.looks[studies], self.known.looks[rows])
        closer = far < self._far[studies]
        self._far[studies[closer]], self._whose[studies[closer]] = far[closer], rows[which[closer]]


class Shelf:
    """The book's newest reading: waited for at the first question, later renewed beside the questions."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self._reading = threading.Lock()
        self._read: tuple[tuple[tuple[int, int], str, str], Novelty] | None = None

    def newest(self, encoder: str, model: str) -> Novelty:
        """What is known; waited for at the first question alone. Of another model at first nothing is."""
        state, read = (self.book.stamp, encoder, model), self._read
        if read is None:
            return self.renew(encoder, model)
        if read[0] != state and not self._reading.locked():
            threading.Thread(target=self.renew, args=(encoder, model), name="book").start()
        return read[1] if read[0][1:] == state[1:] else Novelty(Known.of({}, encoder, model))

    def renew(self, encoder: str, model: str, covered: Sequence[str] = ()) -> Novelty:
        """Read it now, unless another thread just did.

        The distances to `covered`, or else to what the last question was about, are ready with it.
        """
        with self._reading:
            state = (self.book.stamp, encoder, model)
            if self._read is None or self._read[0] != state:
                covered = covered or (self._read[1].covered if self._read else ())
                self._read = state, Novelty(Known.of(self.book.pages(), encoder, model), covered)
            return self._read[1]
