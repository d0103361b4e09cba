"""Evaluation of models that take no prompt, on the objects that others are asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from medsa.evaluation.asking import objects
from medsa.evaluation.enlarged import enlarged
from medsa.evaluation.evaluate import Entry, Wanted, opened
from medsa.evaluation.metrics import compare
from medsa.evaluation.protocol import Case
from medsa.segmenter.classes import Classifier, classify_volume

UNASKED = "none"
"""How the answer without a prompt is called."""


def evaluate_unasked(
    classifier: Classifier,
    cases: Sequence[Case],
    wanted: Wanted,
    record: Path,
    progress: Callable[[int, int], None] = lambda _done, _most: None,
) -> list[Entry]:
    """Entries as `medsa.evaluation.evaluate.evaluate` makes them, with the one prompt "none".

    Labels that the classifier was not taught are never found. `record`, `progress` and errors are as there.
    """
    patients = {name: number for number, name in enumerate(dict.fromkeys(case.patient for case in cases))}
    with opened(record, {}, wanted, cases) as (known, keep):
        for number, case in enumerate(cases):
            progress(number, len(cases))
            if number not in known:
                keep(number, list(_measured(classifier, case, wanted, number, patients[case.patient])))
    progress(len(cases), len(cases))
    return [entry for number in sorted(known) for entry in known[number]]


def _measured(
    classifier: Classifier, case: Case, wanted: Wanted, number: int, patient: int
) -> Iterator[Entry]:
    volume, mask, names = case.read()
    volume, mask = enlarged(volume, mask, wanted.pixels)
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
