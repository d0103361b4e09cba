"""Files that appear whole or not at all, readable by their owner alone."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from medsa.errors import ConfigurationError


def write_atomically(path: Path, data: bytes) -> None:
    """Put `data` at `path`, mode 0600: written beside it, flushed to disk, renamed over what was there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_record(path: Path) -> Any:
    """The JSON of a record that we wrote; raises `ConfigurationError` when something has damaged it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError:
        raise ConfigurationError(
            f"the record {path} is damaged: put a copy of it back, or remove it to do again what it tells of"
        ) from None
