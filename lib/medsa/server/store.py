"""What every datastore of medsa does alike: images in memory, labels checked before anything is written."""

from __future__ import annotations

import io
import json
import re
import threading
import time
import zipfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from numpy.typing import NDArray

from medsa.data.labels import LabelSet
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.data.write import write_atomically
from medsa.errors import BadInputError, LabelMismatchError, NotFoundError
from medsa.segmenter.cache import ContentCache
from medsa.server.noted import checked_names
from medsa.server.scratch import scratch_path

FINAL = DefaultLabelTag.FINAL.value
VOLUMES_BYTES = 2 << 30
_TAG = re.compile(r"[A-Za-z0-9_-]{1,32}")

Names = dict[int, str]
"""Mask value -> label."""


@dataclass(frozen=True)
class About:
    """What the store says of an image without reading it; `state` is a word that changes with its pixels."""

    modality: str = ""
    body_part: str = ""
    study: str = ""
    state: str = ""


class Store(Datastore):
    """Images by id and their labels by tag; "final" is the tag of what a person accepted.

    Masks are (I, J, K) uint8 on the image's own grid. Ids are checked by whoever turns them into paths or
    addresses. Safe to share between threads.
    """

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self._volumes: ContentCache[Volume] = ContentCache(VOLUMES_BYTES)
        self._writing = threading.Lock()

    @abstractmethod
    def volume(self, image_id: str) -> Volume:
        """The image; kept in memory for the next click. Raises `NotFoundError`, `UnreadableImageError`."""

    @abstractmethod
    def save_mask(
        self, image_id: str, mask: NDArray[np.uint8], names: Names, tag: str, info: Mapping[str, Any]
    ) -> str:
        """Keep a mask; its values are indices of the label set, named by `names`. The id, once it is safe."""

    @abstractmethod
    def newest_label(self, image_id: str) -> tuple[NDArray[np.uint8], Names] | None:
        """The newest label a person made for an image, its values being indices of the label set."""

    @abstractmethod
    def label_states(self) -> dict[str, str]:
        """Every image with a label a person made, and a word that changes when its label does."""

    @abstractmethod
    def described(self) -> dict[str, About]:
        """What is known of every image."""

    @abstractmethod
    def is_there(self, image_id: str) -> bool:
        """Whether the store has this image now; it is asked anew."""

    def may_hold(self, label: str) -> dict[str, str]:
        """`label_states` of the images whose label holds `label`, or does not say what it holds."""
        states = self.label_states()
        return {image: states[image] for image in self.get_labeled_images(FINAL, [label]) if image in states}

    def segmentations(self, image_id: str) -> list[dict[str, Any]]:
        """What can be loaded for an image, newest first: {"id", "when", "labels", "human"}."""
        newest = self.newest_label(image_id)
        if newest is None:
            return []
        told = self.get_label_info(image_id, FINAL)
        when = str(told.get("when") or time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(told.get("ts", 0))))
        return [{"id": image_id, "when": when, "labels": list(newest[1].values()), "human": True}]

    def segmentation(self, image_id: str, segmentation_id: str) -> tuple[NDArray[np.uint8], Names]:
        """One of `segmentations` on the grid of its image; raises `NotFoundError`."""
        newest = self.newest_label(image_id) if segmentation_id == image_id else None
        if newest is None:
            raise no_label(FINAL)
        return newest

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]
    ) -> str:
        """A label file of a client; `label_info["label_info"]` lists {"name", "idx"} of its values.

        Without that list the values are indices of the server's label set; they are kept as such. Raises
        `LabelMismatchError` when the label is empty, lies on another grid than the image or holds a value
        that the list does not name, `BadInputError` for labels that the label set does not have.
        """
        tag = check_tag(label_tag or FINAL)
        names = self._names(label_info.get("label_info"))
        mask = read_label(Path(label_filename), self.volume(image_id), self.labels)
        indices, values = np.zeros(256, np.uint8), np.unique(mask[mask > 0]).tolist()
        if values == [1] and list(names) == [255]:
            names = {1: names[255]}  # a picture of one label holds 0 and 255
        for value in values:
            if names and value not in names:
                raise LabelMismatchError(f"the label holds the value {value}, which label_info does not name")
            label = self.labels.by_name(names[value]) if names else self.labels.by_index(value)
            indices[value] = label.index
        mask = indices[mask]
        kept = {index: name for index, name in self.labels.names.items() if index in set(indices.tolist())}
        return self.save_mask(image_id, mask, kept, tag, label_info)

    def _names(self, entries: object) -> Names:
        names = {} if entries is None else checked_names(entries)
        for name in names.values():
            self.labels.by_name(name)
        return names

    def get_unlabeled_images(
        self, label_tag: str | None = None, labels: Sequence[str] | None = None
    ) -> list[str]:
        labelled = set(self.get_labeled_images(label_tag, labels))
        return [image for image in self.list_images() if image not in labelled]

    def status(self) -> dict[str, Any]:
        images, labelled = self.list_images(), self.get_labeled_images()
        return {"total": len(images), "completed": len(labelled), "label_tags": {FINAL: len(labelled)}}

    def json(self) -> dict[str, Any]:
        return {
            "objects": {image: {"labels": self.get_labels_by_image_id(image)} for image in self.list_images()}
        }

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return self.get_labels_by_image_id(image_id).get(tag, "")

    def get_image(self, image_id: str, params: object = None) -> io.BytesIO:  # noqa: ARG002 - MONAI Label's
        return io.BytesIO(Path(self.get_image_uri(image_id)).read_bytes())

    def get_label(self, label_id: str, label_tag: str, params: object = None) -> io.BytesIO:  # noqa: ARG002 - as above
        return io.BytesIO(Path(self.get_label_uri(label_id, label_tag)).read_bytes())

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """A zip of images and their final labels, numbered; it goes with the process's temporary files."""
        target = scratch_path("dataset.zip")
        with zipfile.ZipFile(target, "w") as archive:
            for number, pair in enumerate(self.datalist()[:limit_cases], start=1):
                for kind in ("image", "label"):
                    path = Path(pair[kind])
                    archive.write(path, f"{kind}s/{number:04d}{''.join(path.suffixes[-2:])}")
        return str(target)

    def set_name(self, name: str) -> None:
        raise BadInputError(f"the name of this datastore is its address; it cannot be '{name[:64]}'")

    def description(self) -> str:
        return self.name()

    def set_description(self, description: str) -> None:
        raise BadInputError(f"this datastore keeps no description ('{description[:32]}')")


class Notes:
    """What clients note about images and labels: one small JSON file for each, in one folder.

    Several processes may note something at once: what each added is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / ".lock", mode=0o600)

    def read(self, name: str) -> dict[str, Any]:
        """Everything noted under `name`."""
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def add(self, name: str, info: Mapping[str, Any]) -> None:
        """Note `info`, besides what was there; raises `BadInputError` when it is too much."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            noted = {**self.read(name), **info, "ts": int(time.time())}
            try:
                text = json.dumps(noted, default=_plain, allow_nan=False)
            except ValueError:
                raise BadInputError("what is noted about an image must be finite numbers and text") from None
            if len(text) > 1 << 20:
                raise BadInputError("this is too much to note about one image: at most 1 MiB is kept")
            write_atomically(self._folder / f"{name}.json", text.encode())

    def forget(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """A NumPy or torch number as Python's own, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def check_tag(tag: str) -> str:
    """`tag`, or MONAI Label's constant for it, when it is a word; raises `BadInputError`."""
    word = _TAG.fullmatch(tag) if isinstance(tag, str) else None
    if word is None:
        raise BadInputError("a tag is a word of letters, digits, - and _, such as final")
    return word.group()


def check_names(labels: Sequence[str] | None) -> set[str]:
    """Names of labels that a client asks for, in lower case; raises `BadInputError`."""
    if not isinstance(labels, Sequence | None) or not all(isinstance(name, str) for name in labels or ()):
        raise BadInputError('labels must be a list of names such as ["liver"]')
    return {name.casefold() for name in ([labels] if isinstance(labels, str) else labels or ())}


def listed(names: Names) -> list[dict[str, Any]]:
    """`names` as clients list them."""
    return [{"name": name, "idx": value} for value, name in names.items()]


def no_label(tag: str) -> NotFoundError:
    """What a missing label is answered with."""
    return NotFoundError(f"this image has no label tagged '{tag[:32]}'")
