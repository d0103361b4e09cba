"""A folder of image files as MONAI Label's datastore: images at its top, labels in labels/<tag>/."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsa.data.labels import LabelSet
from medsa.data.read import read_dataset, read_volume, stem
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.data.write import write_mask
from medsa.errors import BadInputError, NotFoundError
from medsa.server.scratch import IMAGE_ENDINGS, LABEL_ENDINGS
from medsa.server.store import FINAL, Names, Notes, Store, no_label

_PICTURES = (".png", ".jpg", ".jpeg")
_TAG = re.compile(r"[A-Za-z0-9_-]{1,32}")


class FolderStore(Store):
    """The images in `folder`: NIfTI, NRRD, PNG, JPEG and DICOM files, and folders with one DICOM series.

    An image's id is its file's name without the ending. Labels are files of the same name under labels/<tag>,
    as MONAI Label's own folder datastore keeps them; what is on disk is the truth, so that files may come and
    go while the server runs.
    """

    def __init__(self, folder: str, labels: LabelSet) -> None:
        super().__init__(labels)
        self.folder = Path(folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def name(self) -> str:
        return str(self.folder)

    def _images(self) -> dict[str, Path]:
        images: dict[str, Path] = {}
        for path in sorted(self.folder.iterdir()):
            if path.name.startswith(".") or path.name == "labels":
                continue
            is_file = path.is_file() and path.name.lower().endswith(IMAGE_ENDINGS)
            if is_file or (path.is_dir() and _holds_dicom(path)):
                images.setdefault(stem(path), path)
        return images

    def _image(self, image_id: str) -> Path:
        path = self._images().get(image_id)
        if path is None:
            raise NotFoundError("there is no image of this id in the folder (any more)")
        return path

    def _tag_folder(self, tag: str) -> Path:
        if not _TAG.fullmatch(tag):
            raise BadInputError("a tag is a word of letters, digits, - and _, such as final")
        return self.folder / "labels" / tag

    def _labels(self, tag: str) -> dict[str, Path]:
        folder = self._tag_folder(tag)
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return {stem(path): path for path in found if path.is_file() and path.name.endswith(LABEL_ENDINGS)}

    def _label(self, image_id: str, tag: str) -> Path:
        path = self._labels(tag).get(image_id)
        if path is None:
            raise no_label(tag)
        return path

    def _notes(self, tag: str = "") -> Notes:
        return Notes(self._tag_folder(tag) / ".info" if tag else self.folder / "labels" / ".info")

    def list_images(self) -> list[str]:
        return list(self._images())

    def get_labeled_images(
        self,
        label_tag: str | None = None,
        labels: Sequence[str] | None = None,  # noqa: ARG002 - MONAI Label's
    ) -> list[str]:
        labelled = self._labels(label_tag or FINAL)
        return [image for image in self._images() if image in labelled]

    def volume(self, image_id: str) -> Volume:
        path = self._image(image_id)
        state = path.stat()
        return self._volumes.get((str(path), state.st_mtime_ns, state.st_size), lambda: read_volume(path))[0]

    def save_mask(
        self, image_id: str, mask: NDArray[np.uint8], names: Names, tag: str, info: Mapping[str, Any]
    ) -> str:
        volume, image = self.volume(image_id), self._image(image_id)
        folder = self._tag_folder(tag)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ending = ".png" if image.name.lower().endswith(_PICTURES) else ".nii.gz"
        with self._writing:
            target = folder / f"{image_id}{ending}"
            write_mask(target, mask, volume, self.labels, names=names)
            for older in folder.iterdir():
                if older.is_file() and stem(older) == image_id and older != target:
                    older.unlink()
        kept = {name: info[name] for name in ("model", "user") if isinstance(info.get(name), str)}
        listed = [{"name": name, "idx": value} for value, name in names.items()]
        self._notes(tag).add(image_id, {**kept, "label_info": listed})
        return image_id

    def newest_label(self, image_id: str) -> tuple[NDArray[np.uint8], Names] | None:
        if image_id not in self._labels(FINAL):
            return None
        mask = read_label(self._label(image_id, FINAL), self.volume(image_id), self.labels)
        noted = self._notes(FINAL).read(image_id).get("label_info", [])
        names = {entry["idx"]: entry["name"] for entry in noted}
        known = self.labels.names
        values = [int(value) for value in np.unique(mask) if value]
        if values == [1] and len(names) == 1:
            values = list(names)
            mask = mask * np.uint8(values[0])  # a picture of one label holds 0 and 255
        return mask, {value: names.get(value) or known.get(value, f"label {value}") for value in values}

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        pairs = []
        for image in self.get_labeled_images():
            pair = {"image": self._image(image), "label": self._label(image, FINAL)}
            pairs.append(
                {
                    kind: str(path if full_path else path.relative_to(self.folder))
                    for kind, path in pair.items()
                }
            )
        return pairs

    def get_image_uri(self, image_id: str) -> str:
        return str(self._image(image_id))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:  # noqa: ARG002 - stock
        return str(self._label(label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        folder = self.folder / "labels"
        tags = (
            [path.name for path in folder.iterdir() if _TAG.fullmatch(path.name)] if folder.is_dir() else []
        )
        return {tag: image_id for tag in sorted(tags) if image_id in self._labels(tag)}

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        path = self._image(image_id)
        return {**self._notes().read(image_id), "name": path.name}

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        path = self._label(label_id, label_tag)
        return {**self._notes(label_tag).read(label_id), "name": path.name}

    def update_image_info(self, image_id: str, info: Mapping[str, Any]) -> None:
        self._image(image_id)
        self._notes().add(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: Mapping[str, Any]) -> None:
        self._label(label_id, label_tag)
        self._notes(label_tag).add(label_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: Mapping[str, Any]) -> str:
        """Take a file in under `image_id`; raises `BadInputError` for an id that is no file name."""
        source = Path(image_filename)
        ending = next((e for e in IMAGE_ENDINGS if source.name.lower().endswith(e)), None)
        if (
            ending is None
            or image_id != Path(image_id).name
            or image_id.startswith(".")
            or image_id == "labels"
        ):
            raise BadInputError("an image needs an id that is a plain name, and a file of a known kind")
        target = self.folder / f"{image_id}{ending}"
        with self._writing:
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, part)
            part.replace(target)
        self._notes().add(image_id, image_info)
        return image_id

    def remove_image(self, image_id: str) -> None:
        path = self._image(image_id)
        for tag in self.get_labels_by_image_id(image_id):
            self.remove_label(image_id, tag)
        self._notes().forget(image_id)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def remove_label(self, label_id: str, label_tag: str) -> None:
        self._label(label_id, label_tag).unlink()
        self._notes(label_tag).forget(label_id)

    def refresh(self) -> None:
        """Nothing is kept that could be out of date."""


def _holds_dicom(folder: Path) -> bool:
    first = next((path for path in sorted(folder.iterdir()) if path.is_file()), None)
    return first is not None and read_dataset(first) is not None
