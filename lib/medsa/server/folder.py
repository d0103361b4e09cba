"""A folder of image files as MONAI Label's datastore: images at its top, labels in labels/<tag>/."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from secrets import token_hex
from stat import S_ISDIR
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsa.config import cache_dir
from medsa.data.labels import LabelSet
from medsa.data.read import DICOM, read_volume, stem
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.data.write import write_image, write_mask
from medsa.errors import BadInputError, MedsaError, NotFoundError, StoreUnavailableError
from medsa.server.ids import is_id
from medsa.server.noted import names_in, white_in
from medsa.server.privacy import short
from medsa.server.scratch import IMAGE_ENDINGS, LABEL_ENDINGS
from medsa.server.store import FINAL, About, Names, Notes, Store, check_names, check_tag, listed, no_label

logger = logging.getLogger(__name__)

_PICTURES = (".png", ".jpg", ".jpeg")
_LONGEST = 255 - len(".nii.gz")
"""Bytes that an id may have, so that the name of its label's file is not too long."""


class FolderStore(Store):
    """The images in `folder`: NIfTI, NRRD, PNG, JPEG and DICOM files, and folders with one DICOM series.

    An image's id is its file's name without the ending. Labels are files of the same name under labels/<tag>,
    as MONAI Label's own folder datastore keeps them, their values the indices of `labels`. What is on disk is
    the truth, so that files may come and go while the server runs. Files whose names cannot be ids are left
    out.
    """

    def __init__(self, folder: str, labels: LabelSet) -> None:
        super().__init__(labels)
        self.folder = Path(folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._left_out = 0

    def name(self) -> str:
        return str(self.folder)

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except OSError as error:
            problem = error.strerror or type(error).__name__
            raise StoreUnavailableError(f"the folder of images cannot be read: {problem}") from None

    def _images(self) -> dict[str, Path]:
        images: dict[str, Path] = {}
        left_out = 0
        for path in filter(_is_image, self._entries()):
            if _can_be_named(stem(path)):
                images.setdefault(stem(path), path)
            else:
                left_out += 1
        if left_out not in (0, self._left_out):
            logger.warning(
                f"{left_out} files of the folder of images are left out: their names are too long or hold "
                "characters that an id cannot (:, *, ?, or what is not UTF-8); rename them"
            )
        self._left_out = left_out
        return images

    def _image(self, image_id: str) -> Path:
        known = self._entries() if _can_be_named(image_id) else ()
        path = next((path for path in known if stem(path) == image_id and _is_image(path)), None)
        if path is None:
            raise NotFoundError("there is no image of this id in the folder (any more)")
        return path

    def _tag_folder(self, tag: str) -> Path:
        return self.folder / "labels" / check_tag(tag)

    def described(self) -> dict[str, About]:
        found = {}
        for image, path in self._images().items():
            with suppress(OSError):  # gone meanwhile
                found[image] = About(state=_state(path))
        return found

    def is_there(self, image_id: str) -> bool:
        return image_id in self._images()

    def _labels(self, tag: str) -> dict[str, Path]:
        folder = self._tag_folder(tag)
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        return {stem(path): path for path in found if path.is_file() and _ends(path, LABEL_ENDINGS)}

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
        self, label_tag: str | None = None, labels: Sequence[str] | None = None
    ) -> list[str]:
        """Images with a label of this tag; with `labels`, those whose label was saved as all of these."""
        tag = label_tag or FINAL
        kept, wanted = self._labels(tag), check_names(labels)
        return [image for image in self._images() if image in kept and wanted <= self._noted(tag, image)]

    def _noted(self, tag: str, image_id: str) -> set[str]:
        return {name.casefold() for name in names_in(self._notes(tag).read(image_id)).values()}

    def volume(self, image_id: str) -> Volume:
        path = self._image(image_id)
        return self._volumes.get((str(path), _state(path)), lambda: read_volume(path))[0]

    def save_mask(
        self, image_id: str, mask: NDArray[np.uint8], names: Names, tag: str, info: Mapping[str, Any]
    ) -> str:
        volume, image = self.volume(image_id), self._image(image_id)
        folder = self._tag_folder(tag)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ending = ".png" if _ends(image, _PICTURES) else ".nii.gz"
        with self._writing:
            target = folder / f"{image_id}{ending}"
            write_mask(target, mask, volume, self.labels, names=names, values=True)
            for older in folder.iterdir():
                if older.is_file() and stem(older) == image_id and older != target:
                    older.unlink()
        kept = {name: info[name] for name in ("model", "user") if isinstance(info.get(name), str)}
        self._notes(tag).add(image_id, {**kept, "label_info": listed(names)})
        return image_id

    def newest_label(self, image_id: str) -> tuple[NDArray[np.uint8], Names] | None:
        if image_id not in self._labels(FINAL):
            return None
        path, note = self._label(image_id, FINAL), self._notes(FINAL).read(image_id)
        mask = read_label(path, self.volume(image_id), self.labels, white=white_in(note))
        names, known = names_in(note), self.labels.names
        values = [int(value) for value in np.unique(mask) if value]
        return mask, {value: names.get(value) or known.get(value, f"label {value}") for value in values}

    def label_states(self) -> dict[str, str]:
        kept, images = self._labels(FINAL), self._images()
        return {image: _state(path) for image, path in kept.items() if image in images}

    def may_hold(self, label: str) -> dict[str, str]:
        """Of a label file that somebody laid there nothing is noted: what it holds is seen on reading it."""
        noted = {image: self._noted(FINAL, image) for image in self._labels(FINAL)}
        return {
            image: state
            for image, state in self.label_states().items()
            if not noted[image] or label.casefold() in noted[image]
        }

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        pairs = []
        for image in self.get_labeled_images():
            try:
                pair = {"image": Path(self.get_image_uri(image)), "label": self._label(image, FINAL)}
            except MedsaError as error:
                why = type(error).__name__  # its words may name the file
                logger.warning(f"label of {short(image)} left out of the training pairs ({why})")
                continue
            pairs.append({kind: self._shown(path, full_path) for kind, path in pair.items()})
        return pairs

    def _shown(self, path: Path, full: bool) -> str:
        return str(path if full or not path.is_relative_to(self.folder) else path.relative_to(self.folder))

    def get_image_uri(self, image_id: str) -> str:
        """The image's file; for DICOM a NIfTI file on the grid of its labels, made when first asked for."""
        path = self._image(image_id)
        if path.is_file() and not _ends(path, DICOM):
            return str(path)
        digest = hashlib.sha256(f"{path.resolve()}{_state(path)}".encode()).hexdigest()[:32]
        target = cache_dir() / "folders" / f"{digest}.nii.gz"
        if not target.is_file():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            write_image(target, self.volume(image_id))
        return str(target)

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:  # noqa: ARG002 - stock
        return str(self._label(label_id, label_tag))

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        tags = sorted(
            path.name for path in self.folder.glob("labels/*") if path.is_dir() and _is_tag(path.name)
        )
        return {tag: image_id for tag in tags if image_id in self._labels(tag)}

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        path = self._image(image_id)
        name = path.name if path.is_file() and not _ends(path, DICOM) else f"{image_id}.nii.gz"
        return {**self._notes().read(image_id), "name": name}

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
        if ending is None or not is_id(image_id) or image_id == "labels":
            raise BadInputError("an image needs an id that is a plain name, and a file of a known kind")
        if not _can_be_named(image_id):
            raise BadInputError(f"the id of the image is too long: at most {_LONGEST} bytes are kept")
        target = self.folder / f"{image_id}{ending}"
        with self._writing:
            part = self.folder / f".part-{token_hex(4)}"
            try:
                with source.open("rb") as sent, part.open("xb") as kept:
                    shutil.copyfileobj(sent, kept, 1 << 20)
                    os.fsync(kept.fileno())
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
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


def _ends(path: Path, endings: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(endings)


def _can_be_named(image_id: str) -> bool:
    return is_id(image_id) and len(os.fsencode(image_id)) <= _LONGEST


def _is_tag(name: str) -> bool:
    with suppress(BadInputError):
        return bool(check_tag(name))
    return False


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "labels":
        return False
    return _holds_dicom(path) if path.is_dir() else _ends(path, IMAGE_ENDINGS)


def _state(path: Path) -> str:
    """A word that changes with the file, or with any file below the folder."""
    state = path.stat()
    if not S_ISDIR(state.st_mode):
        return repr((state.st_mtime_ns, state.st_size))
    return hashlib.sha256(repr(sorted(_states_below(str(path)))).encode()).hexdigest()


def _states_below(folder: str, parents: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int, int]]:
    """The place, time and size of every file that can be reached, as `read_volume` finds them."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            place = (*parents, entry.name)
            with suppress(OSError):  # gone meanwhile
                if entry.is_dir(follow_symlinks=False):
                    yield from _states_below(entry.path, place)
                else:
                    state = entry.stat()
                    yield place, state.st_mtime_ns, state.st_size


def _holds_dicom(folder: Path) -> bool:
    """Whether one of its first files is DICOM, by the name or by the mark after the preamble."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return any(_ends(path, DICOM) or _is_marked(path) for path in islice(files, 10))


def _is_marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
