"""What every datastore of medsa does alike: images in memory, labels checked before anything is written."""

from __future__ import annotations

import json
import threading
import time
import zipfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from numpy.typing import NDArray

from medsa.data.labels import LabelSet
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.data.write import write_atomically
from medsa.errors import BadInputError, LabelMismatchError, NotFoundError
from medsa.segmenter.cache import ContentCache
from medsa.server.scratch import scratch_path

FINAL = DefaultLabelTag.FINAL.value
VOLUMES_BYTES = 1 << 30

Names = dict[int, str]
"""Mask value -> label."""


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
        """Keep a mask whose values are named by `names`; returns the label's id once it is safe."""

    @abstractmethod
    def newest_label(self, image_id: str) -> tuple[NDArray[np.uint8], Names] | None:
        """The newest label a person made for an image, its values being indices of the label set."""

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Mapping[str, Any]
    ) -> str:
        """A label file of a client; `label_info["label_info"]` lists {"name", "idx"} of its values.

        Raises `LabelMismatchError` when it is empty or lies on another grid than the image, `BadInputError`
        for labels that the server's label set does not have.
        """
        names = self._names(label_info.get("label_info"))
        mask = read_label(Path(label_filename), self.volume(image_id), self.labels)
        values = [int(value) for value in np.unique(mask) if value]
        if not values:
            raise LabelMismatchError("the label is empty: draw something before saving it")
        for value in values:
            names.setdefault(value, self.labels.by_index(value).name)
        kept = {value: names[value] for value in values}
        return self.save_mask(image_id, mask, kept, label_tag or FINAL, label_info)

    def _names(self, entries: object) -> Names:
        if entries is None:
            return {}
        if not isinstance(entries, Sequence) or isinstance(entries, str):
            raise BadInputError('label_info must be a list such as [{"name": "liver", "idx": 1}]')
        names: Names = {}
        for position, entry in enumerate(entries, start=1):
            if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
                raise BadInputError('label_info must be a list such as [{"name": "liver", "idx": 1}]')
            index = entry.get("idx", position)
            if not isinstance(index, int) or not 0 <= index <= np.iinfo(np.uint8).max:
                raise BadInputError(f"the idx of label '{entry['name']}' must be a number from 1 to 255")
            if index:
                names[index] = self.labels.by_name(entry["name"]).name
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

    def get_image(self, image_id: str, params: object = None) -> bytes:  # noqa: ARG002 - MONAI Label's signature
        return Path(self.get_image_uri(image_id)).read_bytes()

    def get_label(self, label_id: str, label_tag: str, params: object = None) -> bytes:  # noqa: ARG002 - as above
        return Path(self.get_label_uri(label_id, label_tag)).read_bytes()

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
    """What clients note about images and labels: one small JSON file for each, under hashed names."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> dict[str, Any]:
        """Everything noted under `name`."""
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def add(self, name: str, info: Mapping[str, Any]) -> None:
        """Note `info`, besides what was there; raises `BadInputError` when it is too much."""
        text = json.dumps({**self.read(name), **info, "ts": int(time.time())}, default=str)
        if len(text) > 1 << 20:
            raise BadInputError("this is too much to note about one image: at most 1 MiB is kept")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._folder / f"{name}.json", text.encode())

    def forget(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)


def no_label(tag: str) -> NotFoundError:
    """What a missing label is answered with."""
    return NotFoundError(f"this image has no label tagged '{tag[:32]}'")
