"""Is a download whole? Counts, pairs, headers that can be read, and values that labels may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medsa.datasets.layout import SHOWN, missing, search, unlabelled
from medsa.datasets.spec import Dataset, shown
from medsa.errors import BadInputError, MedsaError


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
    found = search(dataset, folder)
    if not found.all():
        raise BadInputError(missing(dataset, folder, None))
    there, wrong = [], []
    for split in dataset.splits:
        cases, alone = found.cases.get(split, []), unlabelled(found, split, folder)
        parts = [
            (part, pairs)
            for part, pairs in zip(dataset.parts, found.pairs, strict=False)
            if part.split == split
        ]
        counts = [part.count for part, _ in parts] or [dataset.count]
        expected = None if None in counts else sum(count or 0 for count in counts)
        patients = len({case.patient for case in cases})
        there.append(
            f"{split}: {len(cases)} pairs of {patients} patients"
            + (f", {expected} expected" if expected else "")
        )
        if expected is not None and len(cases) != expected:
            wrong.append(f"{split} has {len(cases)} pairs, not {expected}")
        elif expected is None:
            wrong += [
                f"{split} has {pairs} pairs, not {part.count or 'one or more'}, of {shown(part.image)}"
                for part, pairs in parts
                if pairs != (part.count or pairs or 1)
            ]
        wrong += [alone] if alone else []
    occurs, damaged = set[str](), list[str]()
    read = found.all()[::every]
    for number, case in enumerate(read):
        progress(number, len(read))
        try:
            occurs |= set(case.read()[2].values())
        except MedsaError as error:
            damaged.append(str(error))
    progress(len(read), len(read))
    wrong += damaged[:SHOWN]
    if len(damaged) > SHOWN:
        wrong.append(f"{len(damaged) - SHOWN} more pairs are wrong")
    return Checked(tuple(there), tuple(wrong), tuple(sorted(occurs)))
