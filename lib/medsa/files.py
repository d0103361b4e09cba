"""Files that appear whole or not at all, readable by their owner alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TypeVar

from medsa.errors import ConfigurationError

Kind = TypeVar("Kind", dict, list)


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, mode 0600: written beside it, flushed to disk, renamed over what was there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_record(path: Path, kind: type[Kind], *names: str) -> Kind:
    """The JSON of a record that we wrote, a `kind` (dict or list) that holds all `names`.

    Raises `ConfigurationError` when something has damaged it.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, kind) and all(name in found for name in names):
            return found
    except ValueError:
        pass
    raise ConfigurationError(
        f"the record {path} is damaged: put a copy of it back, or remove it to do again what it tells of"
    )
