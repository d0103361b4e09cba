"""A DICOMweb store as MONAI Label's datastore: series are images, the newest human SEG is the label."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from monailabel.config import settings
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

import medsa
from medsa.config import cache_dir
from medsa.data.dicom import DAMAGED, volume_from_datasets
from medsa.data.labels import LabelSet
from medsa.data.seg import Algorithm, read_seg, write_seg
from medsa.data.volume import Volume
from medsa.data.write import write_image, write_mask
from medsa.errors import (
    BadInputError,
    MedsaError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
    UnreadableImageError,
)
from medsa.server.answers import Answers
from medsa.server.copies import Copies
from medsa.server.dicomweb import DicomWeb, check_uid
from medsa.server.privacy import short
from medsa.server.segs import Seg, Segs
from medsa.server.store import FINAL, About, Names, Notes, Store, check_names, check_tag, listed, no_label

logger = logging.getLogger(__name__)

_NO_IMAGES = frozenset(
    {"SEG", "SR", "KO", "PR", "DOC", "REG", "FID", "PLAN", "ASMT", "SMR", "AU", "ECG", "EPS", "HD", "RESP"}
    | {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD"}
)
_TOLD = ("Modality", "StudyDate", "StudyTime", "PatientID", "StudyInstanceUID", "SeriesInstanceUID")
_INCLUDED = ("00180015", "00201209")
"""Body part and number of instances, which not every store tells unasked."""
_FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"


class DicomWebStore(Store):
    """The series of the DICOMweb service at `url`.

    Image ids are SeriesInstanceUIDs, the id of a final label that of its SEG's series (the image's id is
    understood too). Only `final` labels go to the store; those of other tags, a model's own output, stay in
    the cache folder of this machine. Nothing is ever deleted from the store; the files that are made of it go
    from this machine some hours after the store stops listing their series.
    """

    def __init__(self, url: str, labels: LabelSet) -> None:
        super().__init__(labels)
        self.web = DicomWeb(url)
        given = str(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH).strip()
        self._folder = (Path(given) if given else cache_dir() / "dicomweb") / _hashed(self.web.url)[:16]
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._notes = Notes(self._folder / "notes")
        self._answers = Answers()
        self._fetching = Answers(live=0.0, stale=0.0, most=0)  # who waits for one image gets one error, too
        self._images, self._finals = (Copies(self._folder / name) for name in ("images", "finals"))
        self._segs = Segs(self.web, self._folder / "segs", self._answers)

    def name(self) -> str:
        return self.web.url

    def list_images(self) -> list[str]:
        """All series of image modalities, or those that MONAI_LABEL_DICOMWEB_SEARCH_FILTER lets through."""
        return list(self._image_series())

    def described(self) -> dict[str, About]:
        return {
            image: About(
                str(one.get("Modality", "")), str(one.get("BodyPartExamined", "")),
                str(one.get("StudyInstanceUID", "")), _count(one),
            )
            for image, one in self._image_series().items()
        }  # fmt: skip

    def is_there(self, image_id: str) -> bool:
        self._answers.forget(check_uid(image_id))
        try:
            self._series(image_id)
        except NotFoundError:
            return False
        return True

    def get_labeled_images(
        self, label_tag: str | None = None, labels: Sequence[str] | None = None
    ) -> list[str]:
        """Images with a label of this tag; with `labels`, those whose final label holds all of these."""
        if label_tag and label_tag != FINAL:
            return [image for image in self.list_images() if self._kept(image, label_tag).is_file()]
        wanted = check_names(labels)
        labelled = {image for image, seg in self._segs.newest().items() if wanted <= set(seg.labels)}
        return [image for image in self.list_images() if image in labelled]

    def volume(self, image_id: str) -> Volume:
        series = self._series(image_id)
        key = (image_id, _count(series))
        return self._fetching.get(repr(key), lambda: self._volumes.get(key, lambda: self._fetch(series))[0])

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
        model, author = (_word(info.get(key)) for key in ("model", "user"))
        noted = {"label_info": listed(names), "model": model}
        if tag != FINAL:
            path = self._kept(image_id, tag)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_mask(path, mask, volume, self.labels, names=names)
            self._notes.add(_kept_note(path), noted)
            return image_id
        algorithm = Algorithm(f"medsa {model}".strip(), medsa.__version__)
        seg = write_seg(mask, volume, self.labels, names=names, algorithm=algorithm, author=author, tag=tag)
        self.web.store([seg])
        self._segs.forget()
        self._confirm(seg)
        label_id = str(seg.SeriesInstanceUID)
        self._notes.add(_hashed(label_id), noted)
        logger.info(f"label {short(label_id)} of image {short(image_id)} is in the store")
        return label_id

    def _confirm(self, seg: Dataset) -> None:
        """Read back what was stored; raises `StoreError` when it is not there, or not as it was sent."""
        try:
            kept = self.web.instance(seg.StudyInstanceUID, seg.SeriesInstanceUID, seg.SOPInstanceUID)
        except NotFoundError:
            raise StoreError("the DICOMweb store took the label, but does not give it back") from None
        same_syntax = kept.file_meta.TransferSyntaxUID == seg.file_meta.TransferSyntaxUID
        if same_syntax and not kept.PixelData.startswith(seg.PixelData):
            raise StoreError("the DICOMweb store took the label, but holds another one: save it again")

    def newest_label(self, image_id: str) -> tuple[NDArray[np.uint8], Names] | None:
        seg = self._segs.newest().get(check_uid(image_id))
        return None if seg is None else self._read(seg)

    def segmentations(self, image_id: str) -> list[dict[str, Any]]:
        """Every segmentation of a series in the store, a model's own ones among them."""
        mine = sorted((seg for seg in self._segs.all() if seg.image == check_uid(image_id)), reverse=True)
        return [
            {"id": seg.instance, "when": seg.when, "labels": list(seg.labels), "human": seg.human}
            for seg in mine
        ]

    def segmentation(self, image_id: str, segmentation_id: str) -> tuple[NDArray[np.uint8], Names]:
        check_uid(image_id), check_uid(segmentation_id, "segmentation")
        for seg in self._segs.all():
            if (seg.image, seg.instance) == (image_id, segmentation_id):
                return self._read(seg)
        raise NotFoundError("the store has no such segmentation of this series (any more)")

    def label_states(self) -> dict[str, str]:
        images = set(self.list_images())
        return {image: seg.instance for image, seg in self._segs.newest().items() if image in images}

    def _read(self, seg: Seg) -> tuple[NDArray[np.uint8], Names]:
        dataset = self.web.instance(seg.study, seg.series, seg.instance)
        return read_seg(dataset, self.volume(seg.image), self.labels)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:  # noqa: ARG002 - MONAI Label's signature
        """Training pairs as files, each label on the full grid of its image; a bad one is left out."""
        pairs = []
        for image in self.get_labeled_images():
            try:
                pairs.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)})
            except StoreUnavailableError:
                raise
            except MedsaError as error:
                why = type(error).__name__  # its words may name the file
                logger.warning(f"label of {short(image)} left out of the training pairs ({why})")
        return pairs

    def get_image_uri(self, image_id: str) -> str:
        """A NIfTI file of the series, made when it is first asked for."""
        count = _count(self._series(image_id))
        return str(self._images.get(image_id, count, lambda path: write_image(path, self.volume(image_id))))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:  # noqa: ARG002 - stock
        """A NIfTI file of a label on the full grid of its image; `label_id` is the image's or the label's."""
        check_uid(label_id, "label")
        if label_tag != FINAL:
            path = self._kept(label_id, label_tag)
            if not path.is_file():
                raise no_label(label_tag)
            return str(path)
        seg = self._final(label_id)
        state = seg.instance + self.labels.model_dump_json()
        return str(self._finals.get(seg.image, state, lambda path: self._write(seg, path)))

    def _write(self, seg: Seg, path: Path) -> None:
        write_mask(path, self._read(seg)[0], self.volume(seg.image), self.labels)

    def _final(self, label_id: str) -> Seg:
        newest = self._segs.newest()
        found = newest.get(label_id) or next((s for s in self._segs.all() if s.series == label_id), None)
        if found is None:
            raise no_label(FINAL)
        return found

    def _kept(self, image_id: str, tag: str) -> Path:
        return self._folder / "labels" / check_tag(tag) / f"{_hashed(check_uid(image_id))}.nii.gz"

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        seg = self._segs.newest().get(check_uid(image_id))
        tags = sorted(path.parent.name for path in self._folder.glob(f"labels/*/{_hashed(image_id)}.nii.gz"))
        return {**({FINAL: seg.series} if seg else {}), **dict.fromkeys(tags, image_id)}

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        series = self._series(image_id)
        told = {name: str(series.get(name, "")) or "UNK" for name in _TOLD}
        told["name"] = f"{image_id}.nii.gz"  # as what Slicer keeps the image that it downloads
        return {**told, **self._notes.read(_hashed(image_id))}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        check_uid(label_id, "label")
        if label_tag != FINAL:
            return self._notes.read(_kept_note(Path(self.get_label_uri(label_id, label_tag))))
        seg = self._final(label_id)
        told = {"SeriesInstanceUID": seg.series, "StudyInstanceUID": seg.study, "when": seg.when}
        return {**told, **self._notes.read(_hashed(seg.series))}

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        self._series(image_id)
        self._notes.add(_hashed(image_id), info)

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        check_uid(label_id, "label")
        if label_tag != FINAL:
            self._notes.add(_kept_note(Path(self.get_label_uri(label_id, label_tag))), info)
        else:
            self._notes.add(_hashed(self._final(label_id).series), info)

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:  # noqa: ARG002
        """Store a DICOM image file; anything else has no place in a DICOM store."""
        if not image_filename.lower().endswith(".dcm"):
            raise BadInputError(
                "this datastore is a DICOM store: send DICOM (.dcm), or store it there directly"
            )
        try:
            dataset = pydicom.dcmread(image_filename)
            uid = check_uid(str(dataset.get("SeriesInstanceUID", "")))
        except (InvalidDicomError, *DAMAGED) as error:
            raise UnreadableImageError(f"the file is no DICOM object ({type(error).__name__})") from None
        if not _is_image(dataset):
            raise UnreadableImageError(f"the file holds no image but {_word(dataset.get('Modality'))}")
        self.web.store([dataset])
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
        self._notes.forget(_kept_note(path))

    def refresh(self) -> None:
        self._answers.forget()

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
            if not match[0].get("StudyInstanceUID"):
                raise StoreError("the DICOMweb store does not say which study this series belongs to")
            return match[0]

        return self._answers.get_now(image_id, ask)

    def _image_series(self) -> dict[str, Dataset]:
        chosen = getattr(settings, _FILTER) if _FILTER in settings.model_fields_set else {}
        filters = {name: str(value) for name, value in chosen.items()}

        def ask() -> dict[str, Dataset]:
            found = self.web.search("series", {"includefield": _INCLUDED, **filters})
            images = {str(one.SeriesInstanceUID): one for one in found if _is_image(one)}
            self._images.keep_only(images)
            self._finals.keep_only(images)
            return images

        return self._answers.get("images", ask)


def _is_image(series: Dataset) -> bool:
    return "SeriesInstanceUID" in series and str(series.get("Modality", "")) not in _NO_IMAGES


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _word(value: object) -> str:
    """A client's word for a model or a person, as DICOM's short texts can hold it."""
    return re.sub(r"[^\w .@^=-]", "", value).strip()[:56] if isinstance(value, str) else ""


def _count(series: Dataset) -> str:
    return str(series.get("NumberOfSeriesRelatedInstances", ""))


def _kept_note(path: Path) -> str:
    return f"{path.parent.name}-{path.name}"
