"""Which studies say something about a version: those of patients whom it was not taught with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medsa.adapters.state import read_card
from medsa.training.cases import Case
from medsa.training.splits import Splits


def untaught(cases: Sequence[Case], version: Path) -> list[Case]:
    """The `cases` of patients of whom no study taught the adapter `version`.

    A version knows its studies by hashes. The key to them lies two folders above, where `medsa train` and
    `medsa compare` put it; where there is none, as beside a copy, nobody can tell: all cases are returned.
    """
    record = version.resolve().parent.parent / "splits.json"
    if not record.is_file():
        return list(cases)
    splits, studies = Splits(record), set(read_card(version).studies.get("training", ()))
    teachers = {case.patient for case in cases if splits.hashed(case.id) in studies}
    return [case for case in cases if case.patient not in teachers]
