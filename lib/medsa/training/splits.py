"""Which patients validate and which train: decided once for each, recorded, and never changed."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydicom.dataset import Dataset

from medsa.errors import ConfigurationError
from medsa.files import write_atomically

Side = Literal["training", "validation"]

NAMED = re.compile(r"(sub-[0-9A-Za-z]+|patient[-_]?[0-9]+)(?=_|$)", re.IGNORECASE)
"""The patient at the beginning of an image's name, as BIDS and ACDC write it."""


class Splits:
    """The record at `path` (JSON, hash of a patient -> side), with its secret key beside it.

    A new patient's side comes from a hash under that key, or with `alike` from one that everybody computes
    alike, so that a trial can be done again elsewhere: about `share` of them validate. With `both_sides`,
    as soon as there are two patients, one that is newly assigned validates if none did so far, or trains if
    none did so far. A side once recorded stays, whatever `share` is later. Without the key nobody can tell
    from the record who is in it (with `alike`, at most who is not). Threads and processes may share a record.

    Raises `ConfigurationError` for a share outside 0..1, a damaged record, or a record whose key is gone.
    """

    def __init__(
        self, path: Path, share: float = 0.2, *, both_sides: bool = True, alike: bool = False
    ) -> None:
        if not 0 <= share <= 1:
            raise ConfigurationError(f"the share of validation patients lies between 0 and 1, not at {share}")
        self.path, self.share, self.both_sides, self.alike = Path(path), share, both_sides, alike
        self._lock = FileLock(self.path.with_name(f"{self.path.name}.lock"), mode=0o600)

    def side(self, patient: str) -> Side:
        """The side of one patient, decided now if it never was."""
        return self.assign([patient])[patient]

    def assign(self, patients: Iterable[str]) -> dict[str, Side]:
        """The sides of `patients`; those never seen are decided together and recorded."""
        wanted = list(dict.fromkeys(patients))
        key = self._key
        with self._lock:
            record = self._read()
            names = {patient: _hashed(key, patient) for patient in wanted}
            drawn = b"" if self.alike else key
            draws = {name: _draw(drawn, patient) for patient, name in names.items() if name not in record}
            if draws:
                record |= self._decide(draws, record)
                write_atomically(self.path, json.dumps(record, indent=1, sort_keys=True).encode())
        return {patient: record[name] for patient, name in names.items()}

    def hashed(self, patient: str) -> str:
        """The word (32 hex digits) that stands for a patient, a study or a file in all that is kept."""
        return _hashed(self._key, patient)

    def _decide(self, draws: dict[str, float], record: dict[str, Side]) -> dict[str, Side]:
        new: dict[str, Side] = {
            name: "validation" if draw < self.share else "training" for name, draw in draws.items()
        }
        if self.both_sides and len(record) + len(new) >= 2:
            lowest, highest = (
                min(draws, key=lambda name: draws[name]),
                max(draws, key=lambda name: draws[name]),
            )
            wanted: list[tuple[Side, str]] = [("validation", lowest), ("training", highest)]
            for missing, chosen in wanted:
                if missing not in {*record.values(), *new.values()}:
                    new[chosen] = missing
        return new

    def _read(self) -> dict[str, Side]:
        if not self.path.is_file():
            return {}
        try:
            record = json.loads(self.path.read_text("utf-8"))
            if not set(record.values()) <= {"training", "validation"}:
                raise ValueError
        except (ValueError, AttributeError, TypeError):
            raise ConfigurationError(
                f"the split record {self.path} is damaged: put a copy of it back"
            ) from None
        return record

    @cached_property
    def _key(self) -> bytes:
        path = self.path.with_name(f"{self.path.name}.key")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            if not path.is_file() and self.path.is_file():
                raise ConfigurationError(
                    f"the key of the split record {self.path} is gone: nobody can tell who must not train; "
                    f"put {path.name} back, or remove the record and all versions trained with it"
                )
            if not path.is_file():
                write_atomically(path, secrets.token_bytes(32))
            key = path.read_bytes()
        if len(key) < 32:
            raise ConfigurationError(f"the key {path} is damaged: put a copy of it back")
        return key


def patient_of(header: Dataset | None, image: str) -> str:
    """Whose image it is: DICOM's PatientID, else the study, else what the image's name says, or all of it."""
    for name in ("PatientID", "StudyInstanceUID"):
        if value := str((header and header.get(name)) or "").strip():
            return f"{name} {value}"
    named = NAMED.match(image)
    return f"image {named[0] if named else image}"


def _hashed(key: bytes, patient: str) -> str:
    return hmac.new(key, b"name:" + patient.encode(errors="surrogateescape"), hashlib.sha256).hexdigest()[:32]


def _draw(key: bytes, patient: str) -> float:
    """A number 0..1 that is always the same for a patient under one key."""
    digest = hmac.new(key, b"side:" + patient.encode(errors="surrogateescape"), hashlib.sha256).digest()
    return int.from_bytes(digest[:7]) / 2**56
