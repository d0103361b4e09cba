"""A DICOMweb store as MONAI Label's datastore: series are images, the newest human SEG is the label."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
from monailabel.config import Settings, settings
from numpy.typing import NDArray
from pydicom.dataset import Dataset

import medsa
from medsa.config import cache_dir
from medsa.data.dicom import volume_from_datasets
from medsa.data.labels import LabelSet
from medsa.data.seg import Algorithm, read_seg, seg_series, write_seg
from medsa.data.volume import Volume
from medsa.data.write import write_image, write_mask
from medsa.errors import BadInputError, MedsaError, NotFoundError, StoreUnavailableError
from medsa.server.dicomweb import DicomWeb, check_uid
from medsa.server.privacy import short
from medsa.server.store import FINAL, Names, Notes, Store, no_label

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

_LIVE = 5.0
"""Seconds for which an answer of the store is taken as still true; what we write is known at once."""

_NO_IMAGES = frozenset(
    {"SEG", "SR", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "KO", "PR", "DOC", "AU", "ECG"}
)
_TOLD = ("Modality", "StudyDate", "StudyTime", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_STOCK_FILTER = Settings.model_fields["MONAI_LABEL_DICOMWEB_SEARCH_FILTER"].default


@dataclass(frozen=True)
class Seg:
    """A segmentation object in the store, and the image it belongs to."""

    image: str
    study: str
    series: str
    instance: str
    human: bool
    when: datetime


class DicomWebStore(Store):
    """The series of the DICOMweb service at `url`.

    Image ids are SeriesInstanceUIDs, the id of a final label that of its SEG's series (the image's id is
    understood too). Only `final` labels go to the store; those of other tags, a model's own output, stay in
    the cache folder of this machine. Nothing is ever deleted from the store.
    """

    def __init__(self, url: str, labels: LabelSet) -> None:
        super().__init__(labels)
        self.web = DicomWeb(url)
        self._folder = cache_dir() / "dicomweb" / hashlib.sha256(self.web.url.encode()).hexdigest()[:16]
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._notes = Notes(self._folder / "notes")
        self._answers: dict[str, tuple[float, Any]] = {}
        self._segs: dict[tuple[str, int], tuple[Seg, ...]] = {}
        self._asking: dict[str, threading.Lock] = {}

    def name(self) -> str:
        return self.web.url

    def list_images(self) -> list[str]:
        """All series of image modalities, or those that MONAI_LABEL_DICOMWEB_SEARCH_FILTER lets through."""
        return list(self._image_series())

    def get_labeled_images(
        self,
        label_tag: str | None = None,
        labels: Sequence[str] | None = None,  # noqa: ARG002 - MONAI Label's
    ) -> list[str]:
        if label_tag and label_tag != FINAL:
            return [image for image in self.list_images() if self._kept(image, label_tag).is_file()]
        labelled = self._newest()
        return [image for image in self.list_images() if image in labelled]

    def volume(self, image_id: str) -> Volume:
        series = self._series(image_id)
        key = (image_id, str(series.get("NumberOfSeriesRelatedInstances", "")))
        return self._volumes.get(key, lambda: self._fetch(series))[0]

    def _fetch(self, series: Dataset) -> Volume:
        study, uid = str(series.StudyInstanceUID), str(series.SeriesInstanceUID)
        started = time.perf_counter()
        datasets = self.web.series(study, uid)
        fetched = time.perf_counter()
        volume = volume_from_datasets(datasets)
        took = (fetched - started, time.perf_counter() - fetched)
        logger.info(f"image {short(uid)}: fetched in {took[0]:.2f} s, read in {took[1]:.2f} s")
        return volume

    def save_mask(
        self, image_id: str, mask: NDArray[np.uint8], names: Names, tag: str, info: Mapping[str, Any]
    ) -> str:
        volume = self.volume(image_id)
        model = f"medsa {info['model']}" if isinstance(info.get("model"), str) else "medsa"
        algorithm = Algorithm(model[:64], medsa.__version__)
        author = str(info.get("user") or "")
        if tag != FINAL:
            path = self._kept(image_id, tag)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_mask(path, mask, volume, self.labels, names=names)
            self._notes.add(f"{path.parent.name}-{path.name}", {"label_info": _listed(names)})
            return image_id
        seg = write_seg(mask, volume, self.labels, names=names, algorithm=algorithm, author=author, tag=tag)
        self.web.store(seg)
        self._answers.pop("segs", None)
        self._notes.add(_hashed(str(seg.SeriesInstanceUID)), {"label_info": _listed(names), "model": model})
        return str(seg.SeriesInstanceUID)

    def newest_label(self, image_id: str) -> tuple[NDArray[np.uint8], Names] | None:
        seg = self._newest().get(check_uid(image_id))
        return None if seg is None else self._read(seg)

    def _read(self, seg: Seg) -> tuple[NDArray[np.uint8], Names]:
        objects = {str(one.SOPInstanceUID): one for one in self.web.series(seg.study, seg.series)}
        if seg.instance not in objects:
            raise NotFoundError("the store does not have this label any more")
        return read_seg(objects[seg.instance], self.volume(seg.image), self.labels)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: ARG002 - MONAI Label's signature
        """Training pairs as files, each label on the full grid of its image; a bad one is left out."""
        pairs = []
        for image in self.get_labeled_images():
            try:
                pairs.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)})
            except StoreUnavailableError:
                raise
            except MedsaError as error:
                logger.warning(f"label of {short(image)} left out of the training pairs: {error}")
        return pairs

    def get_image_uri(self, image_id: str) -> str:
        """A NIfTI file of the series, made when it is first asked for."""
        count = str(self._series(image_id).get("NumberOfSeriesRelatedInstances", ""))
        path = self._folder / "images" / f"{_hashed(image_id + '/' + count)}.nii.gz"
        if not path.is_file():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_image(path, self.volume(image_id))
        return str(path)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:  # noqa: ARG002 - stock
        """A NIfTI file of a label on the full grid of its image; `label_id` is the image's or the label's."""
        check_uid(label_id, "label")
        if label_tag != FINAL:
            path = self._kept(label_id, label_tag)
            if not path.is_file():
                raise no_label(label_tag)
            return str(path)
        seg = self._final(label_id)
        path = self._folder / "labels" / FINAL / f"{_hashed(seg.instance)}.nii.gz"
        if not path.is_file():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mask, names = self._read(seg)
            write_mask(path, mask, self.volume(seg.image), self.labels, names=names)
        return str(path)

    def _final(self, label_id: str) -> Seg:
        newest = self._newest()
        found = newest.get(label_id) or next((s for s in self._all_segs() if s.series == label_id), None)
        if found is None:
            raise no_label(FINAL)
        return found

    def _kept(self, image_id: str, tag: str) -> Path:
        return self._folder / "labels" / _hashed(tag)[:16] / f"{_hashed(check_uid(image_id))}.nii.gz"

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        seg = self._newest().get(check_uid(image_id))
        return {} if seg is None else {FINAL: seg.series}

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        series = self._series(image_id)
        told = {name: str(series.get(name, "")) or "UNK" for name in _TOLD}
        return {**told, **self._notes.read(_hashed(image_id))}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        check_uid(label_id, "label")
        if label_tag != FINAL:
            path = Path(self.get_label_uri(label_id, label_tag))
            return self._notes.read(f"{path.parent.name}-{path.name}")
        seg = self._final(label_id)
        told = {"SeriesInstanceUID": seg.series, "StudyInstanceUID": seg.study, "when": seg.when.isoformat()}
        return {**told, **self._notes.read(_hashed(seg.series))}

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        self._series(image_id)
        self._notes.add(_hashed(image_id), info)

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        if label_tag != FINAL:
            path = Path(self.get_label_uri(label_id, label_tag))
            self._notes.add(f"{path.parent.name}-{path.name}", info)
            return
        self._notes.add(_hashed(self._final(check_uid(label_id, "label")).series), info)

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:  # noqa: ARG002
        """Store a DICOM image file; anything else has no place in a DICOM store."""
        if not image_filename.lower().endswith(".dcm"):
            raise BadInputError(
                "this datastore is a DICOM store: send DICOM (.dcm), or store it there directly"
            )
        dataset = pydicom.dcmread(image_filename)
        uid = check_uid(str(dataset.get("SeriesInstanceUID", "")))
        self.web.store(dataset)
        self.refresh()
        return uid

    def remove_image(self, image_id: str) -> None:
        raise BadInputError(
            f"images are not removed from the DICOM store through this server ({short(image_id)})"
        )

    def remove_label(self, label_id: str, label_tag: str) -> None:
        if label_tag == FINAL:
            raise BadInputError(
                "labels are not removed from the DICOM store through this server; the newest one counts"
            )
        path = Path(self.get_label_uri(label_id, label_tag))
        path.unlink()
        self._notes.forget(f"{path.parent.name}-{path.name}")

    def refresh(self) -> None:
        self._answers.clear()

    def _series(self, image_id: str) -> Dataset:
        """What the store says of one series; the last answer serves while the store is away."""
        check_uid(image_id)

        def ask() -> Dataset:
            found = self.web.search("series", {"SeriesInstanceUID": image_id, "includefield": "00201209"})
            match = [one for one in found if str(one.get("SeriesInstanceUID", "")) == image_id]
            if not match or not _is_image(match[0]):
                raise NotFoundError(
                    "the store has no image series of this id (any more)"
                    if not match
                    else f"this series holds no image but {str(match[0].get('Modality', ''))[:16]} objects"
                )
            return match[0]

        return self._live(f"series {image_id}", ask, waiting=False)

    def _image_series(self) -> dict[str, Dataset]:
        chosen = settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER
        filters = {} if chosen == _STOCK_FILTER else {name: str(value) for name, value in chosen.items()}

        def ask() -> dict[str, Dataset]:
            found = self.web.search("series", filters)
            return {str(one.SeriesInstanceUID): one for one in found if _is_image(one)}

        return self._live("images", ask)

    def _newest(self) -> dict[str, Seg]:
        """The newest SEG made by a person, by image."""
        newest: dict[str, Seg] = {}
        for seg in self._all_segs():
            if seg.human and (seg.image not in newest or _order(seg) > _order(newest[seg.image])):
                newest[seg.image] = seg
        return newest

    def _all_segs(self) -> list[Seg]:
        def ask() -> list[Seg]:
            query = {"Modality": "SEG", "includefield": "00201209"}
            found = self.web.search("series", query)
            keys = {
                (str(one.SeriesInstanceUID), int(one.get("NumberOfSeriesRelatedInstances") or 0)): one
                for one in found
            }
            new = [(key, one) for key, one in keys.items() if key not in self._segs]
            with ThreadPoolExecutor(4, thread_name_prefix="segs") as pool:
                for (key, _), segs in zip(
                    new, pool.map(self._described, (one for _, one in new)), strict=True
                ):
                    self._segs[key] = segs
            return [seg for key in keys for seg in self._segs[key]]

        return self._live("segs", ask)

    def _described(self, series: Dataset) -> tuple[Seg, ...]:
        study, uid = str(series.StudyInstanceUID), str(series.SeriesInstanceUID)
        found = []
        for header in self.web.metadata(study, uid):
            image, human, when = seg_series(header)
            if image:
                found.append(Seg(image, study, uid, str(header.SOPInstanceUID), human, when))
            else:
                logger.warning(f"segmentation {short(uid)} names no image series; it is left out")
        return tuple(found)

    def _live(self, name: str, ask: Callable[[], Value], waiting: bool = True) -> Value:
        """The store's answer, at most some seconds old; an older one when the store is away.

        Without `waiting` an old answer is given at once, and renewed in the background for the next who asks.
        """
        known = self._answers.get(name)
        if known is not None and (not waiting or time.monotonic() - known[0] < _LIVE):
            if time.monotonic() - known[0] >= _LIVE:
                threading.Thread(target=self._renew_quietly, args=(name, ask), daemon=True).start()
            return known[1]
        return self._renew(name, ask)

    def _renew_quietly(self, name: str, ask: Callable[[], Value]) -> None:
        with suppress(MedsaError):
            self._renew(name, ask)

    def _renew(self, name: str, ask: Callable[[], Value]) -> Value:
        with self._asking.setdefault(name, threading.Lock()):
            known = self._answers.get(name)
            if known is not None and time.monotonic() - known[0] < _LIVE:
                return known[1]
            try:
                value = ask()
            except StoreUnavailableError:
                if known is None:
                    raise
                value = known[1]
                logger.warning("the DICOMweb store is away; what was known of it serves on")
            except NotFoundError:
                self._answers.pop(name, None)
                raise
            self._answers[name] = (time.monotonic(), value)
            return value


def _is_image(series: Dataset) -> bool:
    return "SeriesInstanceUID" in series and str(series.get("Modality", "")) not in _NO_IMAGES


def _order(seg: Seg) -> tuple[datetime, str]:
    return seg.when, seg.instance


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _listed(names: Names) -> list[dict[str, Any]]:
    return [{"name": name, "idx": value} for value, name in names.items()]
