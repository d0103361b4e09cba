"""Labelled studies on disk, in three layouts, as cases that are read when they are needed.

images/ + labels/           files of the same stem
MONAI Label's folder        images at the top, labels of the same stem in labels/final/
a Decathlon dataset.json    "training": [{"image": ..., "label": ...}], "labels": {"1": name}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsa.data.labels import LabelSet
from medsa.data.read import DICOM, NIFTI, NRRD, PICTURES, read_header, read_volume, stem
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.errors import BadInputError, NotFoundError, UnreadableImageError
from medsa.training.splits import patient_of

IMAGES = (*NIFTI, *NRRD, *PICTURES, *DICOM)
LABELS = (*NIFTI, *NRRD, ".png", *DICOM)


@dataclass(frozen=True)
class Case:
    """One labelled study: an image and a label map on its grid; `id` and `patient` are never written down.

    `names` are the names of the mask's values where the layout knows them.
    """

    id: str
    patient: str
    image: Path
    label: Path
    names: Mapping[int, str] = field(default_factory=dict)
    labels: LabelSet | None = None

    def read(self) -> tuple[Volume, NDArray[np.uint8], dict[int, str]]:
        """The image, its mask (I, J, K) of label values, and a name for each value that occurs, if any does.

        Raises what `read_volume` and `read_label` raise, which name the file.
        """
        volume = read_volume(self.image)
        mask = read_label(self.label, volume, self.labels, empty=True)
        values = [int(value) for value in np.unique(mask) if value]
        return volume, mask, {value: self.names.get(value, f"label {value}") for value in values}


@dataclass(frozen=True)
class Nameless:
    """A case whose id and patient are hashes: what may train, stand in cards and be logged."""

    id: str
    patient: str
    read: Callable[[], tuple[Volume, NDArray[np.uint8], dict[int, str]]]


def read_cases(path: Path, labels: LabelSet | None = None) -> list[Case]:
    """The cases of a folder (or a dataset.json) in one of the layouts above, sorted by id.

    Values are named by `labels`, or by what dataset.json says. DICOM names the patient, and so may a file's
    name (see `patient_of`); any other file is a patient of its own. Raises `NotFoundError` or `BadInputError`
    that say what was expected.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no file or folder '{path}'")
    if path.is_file() or (path / "dataset.json").is_file():
        return _decathlon(path if path.is_file() else path / "dataset.json")
    named = {} if labels is None else labels.names
    if (path / "images").is_dir():
        if not (path / "labels").is_dir():
            raise BadInputError(f"'{path}' has images/ but no labels/ beside it")
        return _paired(path, path / "images", path / "labels", named, labels)
    if (path / "labels" / "final").is_dir():
        return _paired(path, path, path / "labels" / "final", named, labels)
    raise BadInputError(
        f"'{path}' holds no labelled studies: expected images/ and labels/, or images with "
        "labels/final/, or a dataset.json"
    )


def _paired(
    path: Path, images: Path, labels: Path, names: Mapping[int, str], known: LabelSet | None
) -> list[Case]:
    pictures = {
        stem(entry): entry for entry in sorted(images.iterdir()) if _is(entry, IMAGES) or _series(entry)
    }
    found, alone = [], []
    for entry in sorted(labels.iterdir()):
        if _is(entry, LABELS):
            name = stem(entry)
            if name in pictures:
                found.append(_case(name, pictures[name], entry, names, known))
            else:
                alone.append(entry.name)
    if not found:
        raise BadInputError(
            f"'{path}': no image in {images.name}/ has a label of the same name in {labels.name}/"
            + (f" (for example {alone[0]} has no image)" if alone else "")
        )
    return found


def _decathlon(path: Path) -> list[Case]:
    try:
        content = json.loads(path.read_text("utf-8"))
        pairs: Sequence[Any] = content["training"]
        names = _names(content.get("labels", {}))
        files = [(path.parent / pair["image"], path.parent / pair["label"]) for pair in pairs]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInputError(
            f'\'{path}\' is no Decathlon dataset: it needs "training": [{{"image": ..., "label": ...}}] and '
            '"labels": {"1": name}'
        ) from None
    if not files:
        raise BadInputError(f"'{path}' lists no training case")
    for file in (file for pair in files for file in pair):
        if not file.exists():
            raise NotFoundError(f"'{path.name}' names {file.name}, which is not there")
    return sorted((_case(stem(image), image, label, names) for image, label in files), key=_id)


def _case(
    name: str, image: Path, label: Path, names: Mapping[int, str], known: LabelSet | None = None
) -> Case:
    return Case(name, patient_of(read_header(image), name), image, label, names, known)


def _names(labels: Mapping[str, Any]) -> dict[int, str]:
    """Names by value; Decathlon writes {"1": name}, its successors {name: 1}."""
    pairs = ((key, value) if key.isdigit() else (value, key) for key, value in labels.items())
    return {int(value): str(name) for value, name in pairs if int(value) > 0}


def _id(case: Case) -> str:
    return case.id


def _is(path: Path, endings: Sequence[str]) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(tuple(endings))


def _series(path: Path) -> bool:
    """A folder that may hold a DICOM series."""
    return path.is_dir() and path.name != "labels" and not path.name.startswith(".")


def wanted(
    cases: Sequence[Case],
    labels: Sequence[str],
    each: Callable[[Sequence[Case]], Iterable[Case]] = iter,
) -> dict[int, str]:
    """The values and names that `labels` mean in `cases`: names, values, or `VALUE=NAME` to give one a name.

    Names are those of the layout. Without `labels` it is all that the layout names, or else all values that
    occur: then `each` of the cases is read (a progress bar may count them). Raises `BadInputError` with what
    there is.
    """
    known: dict[int, str] = {}
    for case in cases:
        known |= case.names
    if not labels:
        return known or _occurring(each(cases))
    by_name = {name.casefold(): value for value, name in known.items()}
    found: dict[int, str] = {}
    for label in map(str.strip, labels):
        number, _, name = map(str.strip, label.partition("="))
        value = int(number) if number.isdecimal() else by_name.get(label.casefold())
        if not value or value in found:
            listed = ", ".join(f"{value} {name}" for value, name in sorted(known.items()))
            raise BadInputError(
                f"{'twice the same label' if value else 'no label is called'} '{label}'; "
                f"there are: {listed or 'only values, 1 or 1=NAME'}"
            )
        found[value] = name or known.get(value, f"label {value}")
    if len(set(found.values())) < len(found):
        raise BadInputError(f"two labels have one name: {', '.join(labels)}")
    return found


def fingerprint(cases: Iterable[Case]) -> str:
    """A digest of what the labels of cases hold and of how large their images are, wherever they lie."""
    digest = hashlib.sha256()
    for case in cases:
        try:
            with case.label.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            files = case.image.rglob("*") if case.image.is_dir() else [case.image]
            digest.update(f"{sum(path.stat().st_size for path in files if path.is_file())} ".encode())
        except OSError as error:
            raise UnreadableImageError(f"{case.label.name}: it or its image cannot be read") from error
    return digest.hexdigest()


def _occurring(cases: Iterable[Case]) -> dict[int, str]:
    found: dict[int, str] = {}
    for case in cases:
        found |= case.read()[2]
    return dict(sorted(found.items()))
