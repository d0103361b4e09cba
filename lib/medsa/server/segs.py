"""Which segmentations a DICOMweb store holds, and which of them is the label of each image."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from pydicom.dataset import Dataset

from medsa.data.pixels import DAMAGED
from medsa.data.seg import seg_series
from medsa.data.write import write_atomically
from medsa.errors import MedsaError, StoreUnavailableError
from medsa.server.answers import Answers
from medsa.server.dicomweb import DicomWeb
from medsa.server.privacy import short

logger = logging.getLogger(__name__)

_READERS = 4
_PER_FRAME = "52009230"


@dataclass(frozen=True, order=True)
class Seg:
    """A segmentation object in the store and the image series it belongs to; the later one is greater.

    `when` is a date in UTC as ISO 8601 writes it, `labels` are the names of its segments in lower case.
    """

    when: str
    instance: str
    image: str
    study: str
    series: str
    labels: tuple[str, ...]
    human: bool


class Segs:
    """The segmentations in the store at `web`; what one says of itself is kept in `folder` and asked once."""

    def __init__(self, web: DicomWeb, folder: Path, answers: Answers) -> None:
        self._web, self._folder, self._answers = web, folder, answers
        self._known: dict[tuple[str, str], tuple[Seg, ...]] = {}
        self._missed: set[tuple[str, str]] = set()

    def newest(self) -> dict[str, Seg]:
        """The newest one made by a person, by image: its label."""
        return {seg.image: seg for seg in sorted(self.all()) if seg.human}

    def all(self) -> list[Seg]:
        """Every one that says which image it belongs to."""
        return self._answers.get("segs", self._ask)

    def forget(self) -> None:
        """There is a new one."""
        self._answers.forget("segs")

    def _ask(self) -> list[Seg]:
        query = {"Modality": "SEG", "includefield": "00201209"}
        found = {_key(one): one for one in self._web.search("series", query)}
        new = {key: one for key, one in found.items() if key not in self._known}
        with ThreadPoolExecutor(_READERS, thread_name_prefix="segs") as pool:
            read = zip(new, pool.map(self._read, new.values()), strict=True)
            self._known.update((key, segs) for key, segs in read if segs is not None)
        return [seg for key in found for seg in self._known.get(key, ())]

    def _read(self, series: Dataset) -> tuple[Seg, ...] | None:
        path = self._folder / f"{hashlib.sha256(repr(_key(series)).encode()).hexdigest()[:32]}.json"
        try:
            return tuple(_from_json(entry) for entry in json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            segs = self._fetch(series)
        if segs:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(path, json.dumps([asdict(seg) for seg in segs]).encode())
        return segs

    def _fetch(self, series: Dataset) -> tuple[Seg, ...] | None:
        """The objects of a series without those that say too little of themselves; None, to ask once more."""
        study, uid = str(series.get("StudyInstanceUID", "")), str(series.SeriesInstanceUID)
        try:
            headers = self._web.metadata(study, uid, without=(_PER_FRAME,))
        except StoreUnavailableError:
            raise
        except (MedsaError, *DAMAGED) as error:
            if _key(series) not in self._missed:
                logger.warning(f"segmentation {short(uid)} is left out for now ({type(error).__name__})")
            self._missed.add(_key(series))
            return None
        if not headers:
            return None
        try:
            segs = [_described(header, study, uid) for header in headers]
        except DAMAGED as error:
            logger.warning(f"segmentation {short(uid)} is left out ({type(error).__name__})")
            return ()
        return tuple(seg for seg in segs if seg.image)


def _key(series: Dataset) -> tuple[str, str]:
    return str(series.SeriesInstanceUID), str(series.get("NumberOfSeriesRelatedInstances", ""))


def _described(header: Dataset, study: str, series: str) -> Seg:
    image, human, when = seg_series(header)
    names = (str(one.get("SegmentLabel", "")) for one in header.get("SegmentSequence") or ())
    labels = tuple(name.strip().casefold() for name in names)
    return Seg(_iso(when), str(header.SOPInstanceUID), image, study, series, labels, human)


def _iso(when: datetime) -> str:
    return when.isoformat(timespec="microseconds")


def _from_json(entry: Mapping[str, object]) -> Seg:
    seg = Seg(**{**entry, "labels": tuple(entry["labels"])})  # type: ignore[arg-type]
    if datetime.fromisoformat(seg.when).tzinfo is None:
        raise ValueError("kept by a version that knew no time zones")
    return seg
