"""A protocol on a whole set: case by case, gone on with when it was stopped, summed up at the end."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsa.errors import BadInputError
from medsa.evaluation.answering import hold, together
from medsa.evaluation.asking import Answers, Dialogue, Protocol, Target, dialogues, objects
from medsa.evaluation.enlarged import enlarged
from medsa.evaluation.protocol import Case
from medsa.files import write_atomically
from medsa.segmenter import Segmenter

Entry = dict[str, Any]
"""One object under one seed: "case", "patient", "label", "slice", "seed", "prompts", "numbers", "ms".

Those of a control say its name in "control".
"""

_Values = dict[tuple[int, str], list[float]]
"""The values of each patient and label."""

LEVEL, DRAWS = 0.95, 2000
FORGETTING = "forgetting"
CASES, OBJECTS = 8, 16
"""Cases that are read before they are asked about, and objects that are asked about in one go."""


@dataclass(frozen=True)
class Wanted:
    """What is measured: `protocol` for each of `seeds` on `slices` of each label, or on volumes with None.

    `labels` are names by value, none for all; `model` says what answers, so that no other one goes on with
    a record; `window` is how volumes are looked at. With `named` a model that has learnt labels is told them.
    Images whose longest side is below `pixels` are enlarged to it first. `data` is a digest of the files.
    """

    protocol: Protocol
    model: Mapping[str, str]
    seeds: int = 1
    slices: int | None = 2
    labels: Mapping[int, str] = field(default_factory=dict)
    window: str = "auto"
    named: bool = True
    pixels: int = 0
    data: str = ""


def evaluate(
    segmenter: Segmenter,
    cases: Sequence[Case],
    wanted: Wanted,
    record: Path,
    progress: Callable[[int, int], None] = lambda _done, _most: None,
    *,
    others: Mapping[str, Segmenter] | None = None,
    forgetting: Sequence[Case] = (),
) -> list[Entry]:
    """Entries of all cases, in their order; cases are numbered, their ids and patients are written nowhere.

    Besides, as controls: the same of `others` by name, and of all of them on a slice of each label of the
    `forgetting` cases. `record` is appended to after each few cases; what it holds already is not measured
    again, so that a run that was stopped goes on. `progress(done, most)` is told often. Raises
    `BadInputError` when the record is of another evaluation, and what cases raise.
    """
    others = others or {}
    parts = _parts({"": segmenter, **others}, cases, wanted)
    if forgetting:
        models = {FORGETTING: segmenter} | {f"{FORGETTING}, {name}": model for name, model in others.items()}
        parts += _parts(models, forgetting, replace(wanted, labels={}, slices=1, window="auto"))
    begun = {"others": {name: model.sam.adapter_digest for name, model in others.items()}}
    done, most = 0, len(cases) + len(forgetting)
    with opened(record, begun, wanted, [*cases, *forgetting]) as (known, keep):
        for number, part in enumerate(parts):
            if number not in known:
                keep(number, _measured(part, partial(progress, done, most)))
            done += len(part.cases)
            progress(done, most)
    return [entry for number in sorted(known) for entry in known[number]]


@dataclass(frozen=True)
class _Part:
    """Some cases with their numbers and their patients', for each of the models, "" or a control's name."""

    cases: Sequence[tuple[int, int, Case]]
    models: Mapping[str, Segmenter]
    wanted: Wanted


def _parts(models: Mapping[str, Segmenter], cases: Sequence[Case], wanted: Wanted) -> list[_Part]:
    """Always the same ones, also after a stop: what is decoded together may differ in a last digit."""
    patients = {name: number for number, name in enumerate(dict.fromkeys(case.patient for case in cases))}
    numbered = [(number, patients[case.patient], case) for number, case in enumerate(cases)]
    size = 1 if wanted.slices is None else CASES
    return [_Part(numbered[first : first + size], models, wanted) for first in range(0, len(cases), size)]


@dataclass(frozen=True)
class _Object:
    """A target with its case, its label's value and name, and the slice of the case, None for volumes."""

    case: int
    patient: int
    value: int
    label: str
    k: int | None
    target: Target


def _measured(part: _Part, told: Callable[[], None]) -> list[Entry]:
    wanted, found = part.wanted, list[tuple[tuple[int, ...], Entry]]()
    asked = (
        (one, seed)
        for number, patient, case in part.cases
        for one in _objects(case, number, patient, part)
        for seed in range(wanted.seeds)
    )
    while some := list(islice(asked, 1 if wanted.slices is None else OBJECTS)):
        for place, (control, model) in enumerate(part.models.items()):
            answers = [Answers() for _ in some]
            held = list[Dialogue]()
            for (one, seed), answer in zip(some, answers, strict=True):
                numbers = (seed, one.case, one.value, -1 if one.k is None else one.k)
                held += dialogues(one.target, wanted.protocol, [1 + n for n in numbers], answer)
            hold(held, partial(together, model, kept={}), told)
            for (one, seed), answer in zip(some, answers, strict=True):
                order = (place, one.case, one.value, one.k or 0, seed)
                found.append((order, _entry(one, seed, control, answer, wanted.protocol)))
    return [entry for _, entry in sorted(found, key=itemgetter(0))]


def _entry(one: _Object, seed: int, control: str, answer: Answers, protocol: Protocol) -> Entry:
    times = {name: answer.milliseconds[name] for name in sorted(answer.milliseconds)}
    return {
        **{"case": one.case, "patient": one.patient, "label": one.label, "slice": one.k, "seed": seed},
        **({"control": control} if control else {}),
        "prompts": {name: _rounded(answer.prompts[name]) for name in protocol.names},
        "numbers": _rounded(answer.numbers),
        "ms": _rounded(times),
    }


def _objects(case: Case, number: int, patient: int, part: _Part) -> Iterator[_Object]:
    """The objects of a case, slice by slice; of its volume what is looked at is kept."""
    wanted, model = part.wanted, next(iter(part.models.values()))
    volume, mask, names = case.read()
    volume, mask = enlarged(volume, mask, wanted.pixels)
    window = model.window(model.seen(volume)[0], wanted.window)
    labels = {value: {**names, **wanted.labels}[value] for value in names.keys() & (wanted.labels or names)}
    places = sorted((-1 if k is None else k, value)
                    for value in labels for k in objects(mask == value, wanted.slices))  # fmt: skip
    kept = sorted({k for k, _ in places})
    if wanted.protocol.slabs:
        kept = list(range(volume.shape[2]))
    elif wanted.slices is not None:
        volume = replace(volume, voxels=np.asfortranarray(volume.voxels[:, :, kept]), headers=())
    look = f"{window.low!r},{window.high!r}"
    for k, value in places:
        told = labels[value] if wanted.named else ""
        if wanted.slices is None:
            target = Target(volume, mask == value, None, look, told)
        else:
            truth, slabs = mask[:, :, k] == value, wanted.protocol.slabs
            target = Target(volume, truth, kept.index(k), look, told, slabs)
        yield _Object(number, patient, value, labels[value], None if target.k is None else k, target)


@contextmanager
def opened(
    record: Path, begun: Mapping[str, Any], wanted: Wanted, cases: Sequence[Case]
) -> Iterator[tuple[Mapping[int, list[Entry]], Callable[[int, list[Entry]], None]]]:
    """What a record holds by part, and what keeps another part; a line that was cut off is forgotten.

    Its first line says what is recorded: `begun`, what is `wanted`, and a salted hash of which `cases` these
    are. Raises `BadInputError` when the record was begun with something else.
    """
    lines = record.read_text("utf-8").splitlines() if record.is_file() else []
    salt = _salt(lines[0]) if lines else secrets.token_hex(16)
    names = [wanted.data, *((case.id, case.patient) for case in cases)]
    which = hashlib.sha256(json.dumps([salt, names]).encode()).hexdigest()
    head = json.dumps({**begun, "wanted": asdict(replace(wanted, data="")), "salt": salt, "cases": which})
    if lines and lines[0] != head:
        raise BadInputError(
            f"{record.name} was begun with other data or options: go on with those, or remove it"
        )
    known: dict[int, list[Entry]] = {}
    for line in lines[1:]:
        try:
            found = json.loads(line)
        except ValueError:
            break
        known[found["part"]] = found["entries"]
    whole = [head, *(json.dumps({"part": part, "entries": entries}) for part, entries in known.items())]
    write_atomically(record, "".join(f"{line}\n" for line in whole).encode())
    with record.open("a", encoding="utf-8") as file:

        def keep(part: int, entries: list[Entry]) -> None:
            known[part] = entries
            file.write(json.dumps({"part": part, "entries": entries}) + "\n")
            file.flush()
            os.fsync(file.fileno())

        yield known, keep


def _salt(head: str) -> str:
    """That of a record's first line, "" when it has none."""
    try:
        return str(json.loads(head)["salt"])
    except (ValueError, KeyError, TypeError):
        return ""


def summary(entries: Sequence[Entry]) -> dict[str, dict[str, dict[str, float]]]:
    """prompt -> metric -> {"mean", "low", "high", "n", "patients"}; "numbers" holds AUC and clicks.

    The mean is over labels of the mean over patients of the mean over each one's entries, so that a label
    that few have, or on few slices, counts as much as another. Low and high are a bootstrap's over patients
    (95 %, seeded), which are the mean itself where there is one patient; n counts entries.
    """
    found: dict[str, dict[str, _Values]] = {}
    for entry in entries:
        for prompt, values in {**entry["prompts"], "numbers": entry["numbers"]}.items():
            for metric, value in values.items():
                kept = found.setdefault(prompt, {}).setdefault(metric, {})
                kept.setdefault((entry["patient"], entry["label"]), []).append(value)
    return {
        prompt: {metric: _interval(values) for metric, values in metrics.items()}
        for prompt, metrics in found.items()
    }


def figures_of(entries: Sequence[Entry]) -> dict[str, Any]:
    """What a report says of the entries, and apart from them of each control's."""
    main = [entry for entry in entries if "control" not in entry]
    found = {
        "summary": summary(main),
        "labels": by_label(main),
        "cases": [{name: value for name, value in entry.items() if name != "ms"} for entry in main],
        "milliseconds": milliseconds(main),
    }
    names = dict.fromkeys(entry["control"] for entry in entries if "control" in entry)
    controls = {name: summary([entry for entry in entries if entry.get("control") == name]) for name in names}
    return {**found, "controls": controls} if controls else found


def by_label(entries: Sequence[Entry]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """`summary` of each label."""
    labels = sorted({entry["label"] for entry in entries})
    return {label: summary([entry for entry in entries if entry["label"] == label]) for label in labels}


def span(value: Mapping[str, float]) -> str:
    """The interval of a mean; of one patient there is none."""
    return "–" if value.get("patients") == 1 else f"{value['low']:.3f} to {value['high']:.3f}"


def milliseconds(entries: Sequence[Entry]) -> dict[str, float]:
    """Median time of an answer by prompt; "encode" is that of a slice's encoding, which comes before."""
    prompts = list(dict.fromkeys(name for entry in entries for name in entry["ms"]))
    return {
        name: round(statistics.median(entry["ms"][name] for entry in entries if name in entry["ms"]), 1)
        for name in prompts
    }


def _interval(values: _Values) -> dict[str, float]:
    patients = sorted({patient for patient, _ in values})
    labels = sorted({label for _, label in values})
    means = np.array(
        [[np.mean(values.get((patient, label), np.nan)) for label in labels] for patient in patients]
    )
    means = means[np.lexsort([*means.T, np.nanmean(means, axis=1)])]  # whatever patients are called
    drawn = np.random.default_rng(0).integers(len(means), size=(DRAWS, len(means)))
    often = np.stack([(drawn == patient).sum(axis=1) for patient in range(len(means))], axis=1)
    spread = _over_labels(means, often)
    low, high = np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = _over_labels(means, np.ones((1, len(means)), np.intp))[0]
    count = sum(map(len, values.values()))
    return {**_rounded({"mean": mean, "low": low, "high": high}), "n": count, "patients": len(patients)}


def _over_labels(means: NDArray[np.float64], often: NDArray[np.intp]) -> NDArray[np.float64]:
    """(draws,), the mean over labels of that over patients, of (patients, labels), NaN where one has none.

    `often` (draws, patients) each patient is drawn; a label that nobody drawn has is left out.
    """
    counts = often @ ~np.isnan(means)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nanmean(often @ np.nan_to_num(means) / counts, axis=1))


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
