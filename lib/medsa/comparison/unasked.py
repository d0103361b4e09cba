"""Evaluation of those that take no prompt, on the objects that the others are asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from medsa.comparison.plan import UNASKED
from medsa.evaluation.asking import objects
from medsa.evaluation.evaluate import Entry, Wanted
from medsa.evaluation.metrics import compare
from medsa.evaluation.protocol import Case
from medsa.files import write_atomically
from medsa.segmenter.classes import Classifier, classify_volume


def evaluate_unasked(
    classifier: Classifier,
    cases: Sequence[Case],
    wanted: Wanted,
    record: Path,
    progress: Callable[[int, int], None] = lambda _done, _most: None,
) -> list[Entry]:
    """Entries as `medsa.evaluation.evaluate.evaluate` makes them, with the one prompt "none".

    `record` holds what is done so far; a run that was stopped goes on with its case. Labels that the
    classifier was not taught are never found.
    """
    patients = {name: number for number, name in enumerate(dict.fromkeys(case.patient for case in cases))}
    known: list[list[Entry]] = json.loads(record.read_text("utf-8")) if record.is_file() else []
    for number, case in enumerate(cases):
        progress(number, len(cases))
        if number >= len(known):
            known.append(list(_measured(classifier, case, wanted, number, patients[case.patient])))
            write_atomically(record, json.dumps(known).encode())
    progress(len(cases), len(cases))
    return [entry for entries in known for entry in entries]


def _measured(
    classifier: Classifier, case: Case, wanted: Wanted, number: int, patient: int
) -> Iterator[Entry]:
    volume, mask, names = case.read()
    labels: Mapping[int, str] = wanted.labels or names
    asked = [
        (value, k)
        for value in sorted(names.keys() & labels.keys())
        for k in objects(mask == value, wanted.slices)
    ]
    slices = {k for _, k in asked if k is not None} if wanted.slices is not None else None
    started = time.perf_counter()
    answer = classify_volume(classifier, volume, slices, window=wanted.window).mask
    took = 1e3 * (time.perf_counter() - started) / max(1, len(slices) if slices is not None else 1)
    for value, k in asked:
        label = labels[value]
        place = 1 + classifier.labels.index(label) if label in classifier.labels else -1
        found, truth = answer == place, np.asarray(mask) == value
        if k is not None:
            found, truth = found[:, :, k], truth[:, :, k]
        metrics = compare(found, truth, volume.spacing[: truth.ndim].tolist(), wanted.protocol.tolerance)
        yield {
            **{"case": number, "patient": patient, "label": label, "slice": k, "seed": 0},
            "prompts": {UNASKED: {name: round(float(metric), 5) for name, metric in metrics.items()}},
            "numbers": {},
            "ms": {UNASKED: round(took, 5)},
        }
