"""Notes that the server itself goes by: checked when a client sends them, read with care from the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from medsa.errors import BadInputError

_LIST = 'label_info must be a list such as [{"name": "liver", "idx": 1}]'


def checked_names(entries: object) -> dict[int, str]:
    """The labels that `entries`, a `label_info`, lists by value; raises `BadInputError` when it is none."""
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise BadInputError(_LIST)
    names: dict[int, str] = {}
    for position, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            raise BadInputError(_LIST)
        index = entry.get("idx", position)
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index <= np.iinfo(np.uint8).max:
            raise BadInputError("the idx of a label in label_info must be a number from 1 to 255")
        if names.get(index, entry["name"]) != entry["name"]:
            raise BadInputError(f"label_info gives two names to the value {index}")
        if index:
            names[index] = entry["name"]
    return names


def names_in(note: Mapping[str, Any]) -> dict[int, str]:
    """The labels that the note of a label lists; none where it lists nothing that can be read."""
    with suppress(BadInputError):
        return checked_names(note.get("label_info", []))
    return {}


def checked_confidences(found: object) -> dict[str, float]:
    """The confidences by label of what was found in an image; raises `BadInputError` when there are none."""
    confidences = found.get("confidences") if isinstance(found, Mapping) else None
    if not isinstance(confidences, Mapping) or not all(
        isinstance(sure, int | float) for sure in confidences.values()
    ):
        raise BadInputError('medsa_auto must be what was found, such as {"confidences": {"liver": 0.9}}')
    return dict(confidences)


def white_in(note: Mapping[str, Any]) -> int:
    """What white means in a black and white label with this note: the only label listed, else 1."""
    names = names_in(note)
    return next(iter(names)) if len(names) == 1 else 1
