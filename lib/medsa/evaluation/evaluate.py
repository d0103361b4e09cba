"""A protocol on a whole set: case by case, gone on with when it was stopped, summed up at the end."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from medsa.errors import BadInputError
from medsa.evaluation.asking import Protocol, ask_all, objects
from medsa.evaluation.protocol import Case
from medsa.files import write_atomically
from medsa.segmenter import Segmenter

Entry = dict[str, Any]
"""One object under one seed: "case", "patient", "label", "slice", "seed", "prompts", "numbers", "ms"."""

LEVEL, DRAWS = 0.95, 2000


@dataclass(frozen=True)
class Wanted:
    """What is measured: `protocol` for each of `seeds` on `slices` of each label, or on volumes with None.

    `labels` are names by value, none for all; `model` says what answers, so that no other one goes on with
    a record.
    """

    protocol: Protocol
    model: Mapping[str, str]
    seeds: int = 1
    slices: int | None = 2
    labels: Mapping[int, str] = field(default_factory=dict)


def evaluate(
    segmenter: Segmenter,
    cases: Sequence[Case],
    wanted: Wanted,
    record: Path,
    progress: Callable[[int, int], None] = lambda _done, _most: None,
) -> list[Entry]:
    """Entries of all cases, in their order; cases are numbered, their ids and patients are written nowhere.

    `record` is appended to after each case; what it holds already is not measured again, so that a run that
    was stopped goes on. Raises `BadInputError` when it is of another evaluation, and what cases raise.
    """
    patients = {name: number for number, name in enumerate(dict.fromkeys(case.patient for case in cases))}
    with _opened(record, wanted, len(cases)) as (known, file):
        for number, case in enumerate(cases):
            progress(number, len(cases))
            if number not in known:
                found = list(_measured(segmenter, case, wanted, number, patients[case.patient]))
                known[number] = found
                file.write(json.dumps({"case": number, "entries": found}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        progress(len(cases), len(cases))
    return [entry for number in sorted(known) for entry in known[number]]


def _measured(segmenter: Segmenter, case: Case, wanted: Wanted, number: int, patient: int) -> Iterator[Entry]:
    volume, mask, names = case.read()
    for value in sorted(names.keys() & (wanted.labels or names).keys()):
        label = {**names, **wanted.labels}[value]
        truth = mask == value
        for k in objects(truth, wanted.slices):
            for seed in range(wanted.seeds):
                place = (seed, number, value, -1 if k is None else k)
                answers = ask_all(segmenter, volume, truth, k, wanted.protocol, [1 + part for part in place])
                yield {
                    **{"case": number, "patient": patient, "label": label, "slice": k, "seed": seed},
                    "prompts": {name: _rounded(values) for name, values in answers.prompts.items()},
                    "numbers": _rounded(answers.numbers),
                    "ms": _rounded(answers.milliseconds),
                }


@contextmanager
def _opened(record: Path, wanted: Wanted, cases: int) -> Iterator[tuple[dict[int, list[Entry]], TextIO]]:
    """What a record holds by case, and the file to go on with; a line that was cut off is forgotten."""
    head = json.dumps({"wanted": json.loads(json.dumps(asdict(wanted))), "cases": cases})
    lines = record.read_text("utf-8").splitlines() if record.is_file() else []
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
        known[found["case"]] = found["entries"]
    whole = [head, *(json.dumps({"case": case, "entries": entries}) for case, entries in known.items())]
    write_atomically(record, "".join(f"{line}\n" for line in whole).encode())
    with record.open("a", encoding="utf-8") as file:
        yield known, file


def summary(entries: Sequence[Entry]) -> dict[str, dict[str, dict[str, float]]]:
    """prompt -> metric -> {"mean", "low", "high", "n"}; "numbers" holds AUC and clicks.

    The mean is over patients of the mean over each one's entries; low and high are a bootstrap's over
    patients (95 %, seeded); n counts entries.
    """
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for entry in entries:
        for prompt, values in {**entry["prompts"], "numbers": entry["numbers"]}.items():
            for metric, value in values.items():
                found.setdefault(prompt, {}).setdefault(metric, {}).setdefault(entry["patient"], []).append(
                    value
                )
    return {
        prompt: {metric: _interval(patients) for metric, patients in metrics.items()}
        for prompt, metrics in found.items()
    }


def by_label(entries: Sequence[Entry]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """`summary` of each label."""
    labels = sorted({entry["label"] for entry in entries})
    return {label: summary([entry for entry in entries if entry["label"] == label]) for label in labels}


def milliseconds(entries: Sequence[Entry]) -> dict[str, float]:
    """Median time of an answer by prompt, the first click on a slice with its encoding."""
    prompts = list(dict.fromkeys(name for entry in entries for name in entry["ms"]))
    return {
        name: round(statistics.median(entry["ms"][name] for entry in entries if name in entry["ms"]), 1)
        for name in prompts
    }


def _interval(patients: Mapping[int, Sequence[float]]) -> dict[str, float]:
    means = np.array([np.mean(values) for _, values in sorted(patients.items())])
    drawn = np.random.default_rng(0).integers(len(means), size=(DRAWS, len(means)))
    low, high = np.quantile(means[drawn].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    count = sum(len(values) for values in patients.values())
    return {**_rounded({"mean": means.mean(), "low": low, "high": high}), "n": count}


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
