"""The folder of a downloaded data set, searched for what its layout says; what is missing is said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medsa.datasets.spec import Dataset, Part, expression, filled, shown, starred
from medsa.datasets.stored import StoredCase
from medsa.errors import BadInputError, NotFoundError
from medsa.training.cases import read_cases

SHOWN = 5


@dataclass
class Found:
    """What a folder holds: `cases` by split, images that have no label, by split, and pairs of each part."""

    cases: dict[str, list[StoredCase]] = field(default_factory=dict)
    alone: dict[str, list[Path]] = field(default_factory=dict)
    pairs: list[int] = field(default_factory=list)

    def all(self) -> list[StoredCase]:
        """The cases of all splits."""
        return [case for cases in self.cases.values() for case in cases]


def find_cases(dataset: Dataset, folder: Path, split: str | None = None) -> list[StoredCase]:
    """The cases of a split, or of all, sorted; ids and patients are unique within the data set.

    Raises `NotFoundError` and `BadInputError` that say what was expected and what was found, also where an
    image has no label.
    """
    if split is not None and split not in dataset.splits:
        raise BadInputError(
            f"{dataset.name} has no split '{split}': take one of {', '.join(dataset.splits)}, or all"
        )
    found = search(dataset, Path(folder))
    cases = found.all() if split is None else found.cases.get(split, [])
    if not cases:
        raise BadInputError(missing(dataset, Path(folder), split))
    for name in dataset.splits if split is None else [split]:
        if alone := unlabelled(found, name, Path(folder)):
            raise BadInputError(f"{alone}; `medsa datasets check` tells what else is missing")
    return sorted(cases, key=lambda case: case.id)


def unlabelled(found: Found, split: str, folder: Path) -> str:
    """Which images of a split have no label, in words; "" when all have."""
    alone = found.alone.get(split, [])
    named = ", ".join(path.relative_to(folder).as_posix() for path in alone[:SHOWN])
    return f"{split}: {len(alone)} images have no label, such as {named}" if alone else ""


def search(dataset: Dataset, folder: Path) -> Found:
    """What is there of a data set; raises `NotFoundError` for no folder, and what a dataset.json is not."""
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder '{folder}'")
    if dataset.kind == "decathlon":
        return Found({"train": _decathlon(dataset, folder)})
    found = Found()
    for part in dataset.parts:
        for root in dataset.roots:
            pairs = list(_pairs(part, folder / root))
            if pairs:
                break
        found.pairs.append(sum(label is not None for *_, label in pairs))
        for values, image, label in pairs:
            if label is None:
                found.alone.setdefault(part.split, []).append(image)
            else:
                case = _case(dataset, part, values, image, label, folder)
                found.cases.setdefault(part.split, []).append(case)
    return found


def _pairs(part: Part, root: Path) -> Iterator[tuple[dict[str, str], Path, Path | None]]:
    """The words, the image, and the label or None, of each image of a part below `root`."""
    form = expression(part.image)
    for image in sorted(root.glob(starred(part.image))):
        fits = form.fullmatch(image.relative_to(root).as_posix())
        if fits and not image.name.startswith("."):
            values = fits.groupdict()
            labels = (root / filled(label, values) for label in part.label)
            yield values, image, next((label for label in labels if label.is_file()), None)


def _case(
    dataset: Dataset, part: Part, values: dict[str, str], image: Path, label: Path, folder: Path
) -> StoredCase:
    return StoredCase(
        image.relative_to(folder).as_posix(),
        f"{dataset.name} {filled(part.patient or dataset.patient, values)}",
        image,
        label,
        dataset.names,
        modality=dataset.modality,
        channel=dataset.channel,
        values=dataset.values,
        others=dataset.others,
        colours=dataset.colours,
        polygons=values.get("number", "1") if part.reading == "polygons" else "",
    )


def _decathlon(dataset: Dataset, folder: Path) -> list[StoredCase]:
    if not (folder / "dataset.json").is_file():
        raise BadInputError(missing(dataset, folder, None))
    cases = read_cases(folder)
    modality = json.loads((folder / "dataset.json").read_text("utf-8")).get("modality", {})
    said = str(modality.get(str(dataset.channel), "")) if isinstance(modality, dict) else ""
    kind = "CT" if said.upper() == "CT" else "MR" if said else ""
    names, first = ", ".join(cases[0].names.values()), next(iter(dataset.names.values()), "")
    if first.casefold() not in names.casefold() or (dataset.modality and kind not in ("", dataset.modality)):
        raise BadInputError(
            f"'{folder}' is another data set: expected {first} in {dataset.modality}, found {names}"
            + (f" in {kind}" if kind else "")
        )
    return [
        StoredCase(
            case.id,
            case.patient,
            case.image,
            case.label,
            dataset.names or case.names,
            modality=dataset.modality or kind,
            channel=dataset.channel,
            values=dataset.values,
            others=dataset.others,
        )
        for case in cases
    ]


def missing(dataset: Dataset, folder: Path, split: str | None) -> str:
    """What was expected, and what is there instead."""
    if dataset.kind == "decathlon":
        wanted = "dataset.json with imagesTr/ and labelsTr/"
    else:
        parts = [part for part in dataset.parts if split in (None, part.split)]
        pairs = [f"{shown(part.image)} with {shown(part.label[0])}" for part in parts]
        roots = [root for root in dataset.roots if root]
        wanted = ", or ".join(dict.fromkeys(pairs)) + (f", in {' or '.join(roots)}" if roots else "")
    entries = [entry for entry in folder.iterdir() if entry.name[0] != "."]
    kinds = Counter("folders" if entry.is_dir() else entry.suffix or "files" for entry in entries)
    there = [f"{kind} ({count})" for kind, count in kinds.most_common(SHOWN)]
    return (
        f"'{folder}' holds no labelled images of {dataset.title}"
        + (f" (split {split})" if split else "")
        + f": expected {wanted}; found {', '.join(there) or 'nothing'}"
    )
