"""Labels that annotators add to the server's set: kept beside the adapter versions of their datastore."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from medsa.adapters.state import CARD
from medsa.data.labels import Code, Label, LabelSet
from medsa.errors import BadInputError, ConfigurationError
from medsa.files import write_atomically

FILE = "labels.json"

_TISSUE = Code(value="85756007", scheme="SCT", meaning="Tissue")
_COLOURS = (
    (64, 196, 255),
    (255, 196, 0),
    (180, 120, 255),
    (0, 214, 143),
    (255, 110, 110),
    (190, 220, 80),
    (255, 140, 220),
    (90, 150, 255),
)
_LABELS = TypeAdapter(tuple[Label, ...])


def with_added(labels: LabelSet, folder: Path) -> LabelSet:
    """`labels` and those added to them in `folder`; a set that has changed since keeps its own on a clash.

    Raises `ConfigurationError` when the file cannot be read.
    """
    path = folder / FILE
    if not path.is_file():
        return labels
    try:
        added = _LABELS.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        raise ConfigurationError(f"{path} holds no labels: mend it, or remove it") from None
    indices = set(labels.names)
    new = tuple(one for one in added if one.index not in indices and labels.find(one.name) is None)
    return labels.model_copy(update={"labels": (*labels.labels, *new)})


def add(labels: LabelSet, folder: Path, name: str) -> LabelSet:
    """`labels` with one more, called `name` and coded as tissue; unchanged when there is one of this name.

    Raises `BadInputError` for what is no name, for a full set, and where nothing can be kept.
    """
    name = " ".join(name.split())
    if not 0 < len(name) <= 64 or not name.isprintable() or "\\" in name:
        raise BadInputError(
            "a label needs a name of 1 to 64 characters, without backslash or control characters"
        )
    if (folder / CARD).is_file():
        raise BadInputError(
            "labels cannot be added: --conf adapters is one version; name a folder that may hold several"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(folder / f".{FILE}.lock", mode=0o600):
        now = with_added(labels, folder)
        if now.find(name) is not None:
            return now
        free = next((index for index in range(max(now.names) + 1, 256)), None)
        if free is None:
            raise BadInputError("the label set is full: a mask has 255 values")
        kept = _kept(folder)
        label = Label(
            name=name, index=free, color=_COLOURS[free % len(_COLOURS)], category=_TISSUE, type=_TISSUE
        )
        entries = [one.model_dump(mode="json") for one in (*kept, label)]
        write_atomically(folder / FILE, json.dumps(entries, indent=1).encode())
        return with_added(labels, folder)


def _kept(folder: Path) -> tuple[Label, ...]:
    path = folder / FILE
    return _LABELS.validate_json(path.read_bytes()) if path.is_file() else ()
