"""Which datastore `--studies` means."""

from __future__ import annotations

from medsa.data.labels import LabelSet
from medsa.server.datastore import DicomWebStore
from medsa.server.folder import FolderStore
from medsa.server.store import Store


def open_store(studies: str, labels: LabelSet) -> Store:
    """The DICOMweb service at an address, or the folder of a path."""
    if studies.startswith(("http://", "https://")):
        return DicomWebStore(studies.rstrip("/"), labels)
    return FolderStore(studies, labels)
