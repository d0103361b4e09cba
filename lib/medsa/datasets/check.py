"""Is a download whole? Counts, pairs, headers that can be read, and values that labels may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsa.data.volume import Volume
from medsa.datasets.layout import find_cases, search
from medsa.datasets.spec import Dataset
from medsa.datasets.stored import StoredCase
from medsa.errors import MedsaError

SHOWN = 5


@dataclass(frozen=True)
class Checked:
    """What was found: lines of what is there, sentences of what is wrong, and the labels that occur."""

    there: tuple[str, ...]
    wrong: tuple[str, ...]
    occurs: tuple[str, ...]


def check(
    dataset: Dataset, folder: Path, every: int = 1, progress: Callable[[int, int], None] = lambda _d, _m: None
) -> Checked:
    """Look at a download; each `every`th pair is read whole. Raises as `find_cases` when nothing is there."""
    find_cases(dataset, folder)
    found = search(dataset, folder)
    there, wrong = [], []
    for split in dataset.splits:
        cases, alone = found.cases.get(split, []), found.alone.get(split, [])
        counts = [part.count for part in dataset.parts if part.split == split] or [dataset.count]
        expected = None if None in counts else sum(count or 0 for count in counts)
        patients = len({case.patient for case in cases})
        there.append(
            f"{split}: {len(cases)} pairs of {patients} patients"
            + (f", {expected} expected" if expected else "")
        )
        if expected is not None and len(cases) != expected:
            wrong.append(f"{split} has {len(cases)} pairs, not {expected}")
        if alone:
            named = ", ".join(path.relative_to(folder).as_posix() for path in alone[:SHOWN])
            wrong.append(f"{split}: {len(alone)} images have no label, such as {named}")
    cases, occurs = found.all(), set[str]()
    read = cases[::every]
    for number, case in enumerate(read):
        progress(number, len(read))
        try:
            volume, _, names = case.read()
            occurs |= set(names.values()) | _unknown(dataset, case, volume)
        except MedsaError as error:
            wrong.append(str(error))
    progress(len(read), len(read))
    unknown = sorted(name for name in occurs if name.startswith("unknown "))
    wrong += [f"labels hold an {name}, which is none of the data set's" for name in unknown[:SHOWN]]
    if len(unknown) > SHOWN:
        wrong.append(f"labels hold {len(unknown) - SHOWN} more that are unknown")
    return Checked(tuple(there), tuple(wrong), tuple(sorted(occurs - set(unknown))))


def _unknown(dataset: Dataset, case: StoredCase, volume: Volume) -> set[str]:
    """Values or colours of a label file that the data set does not have."""
    if case.polygons:
        return set()
    stored = case.stored_values(volume)
    if dataset.colours:
        occurring = set(map(tuple, np.unique(stored.reshape(-1, 3), axis=0).tolist()))
        return {
            f"unknown colour {','.join(map(str, colour))}"
            for colour in occurring - {(0, 0, 0), *dataset.colours.values()}
        }
    known = {0, *(dataset.values or dataset.names or case.names)}
    if dataset.values:
        known |= set(dataset.others)
    return {f"unknown value {value:g}" for value in np.unique(stored).tolist() if value not in known}
