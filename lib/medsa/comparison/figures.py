"""What a comparison found, in figures: the content of report.json."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from os import cpu_count
from typing import Any

import torch

import medsa
from medsa.comparison.compare import Comparison, Result
from medsa.comparison.plan import Entrant
from medsa.errors import BadInputError
from medsa.evaluation.evaluate import by_label, milliseconds, summary

Figures = Mapping[str, Any]

AVERAGE = "average"
"""The mean over all labels, among a paper's figures."""


def figures_of(comparison: Comparison, results: Sequence[Result]) -> dict[str, Any]:
    """Everything that a report shows; no name or id of a patient or file is among it.

    Raises `BadInputError` when no held-out patient shows what was asked for.
    """
    plan, data = comparison.plan, comparison.data
    if not any(result.entries for result in results):
        raise BadInputError("no held-out case holds an object of these labels that is large enough")
    return {
        "title": plan.title,
        "paper": plan.paper,
        "note": plan.note,
        "budget": str(plan.budget),
        "warm start": f"{plan.warm_start.method}, {plan.warm_start}" if plan.warm_start else "",
        "start": plan.start,
        "settings": plan.settings,
        "image size": plan.image_size,
        "asked": plan.asked.model_dump(mode="json"),
        "seeds": plan.seeds,
        "cases": {"training": len(data.training), "held out": len(comparison.held)},
        "labels": list(data.labels.values()),
        "made": {
            "when": datetime.now(UTC).isoformat(timespec="minutes"),
            "medsa": medsa.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {cpu_count()} cores, {comparison.device}",
        },
        "entrants": [
            _line(comparison, entrant, [result for result in results if result.entrant is entrant])
            for entrant in plan.entrants
        ],
        "others": plan.others,
    }


def _line(comparison: Comparison, entrant: Entrant, results: Sequence[Result]) -> dict[str, Any]:
    entries = [entry for result in results for entry in result.entries]
    counts = results[0].counts
    return {
        "name": entrant.name,
        "method": entrant.method,
        "title": entrant.read().title,
        "backbone": entrant.backbone or comparison.plan.backbone,
        "trained": counts["trained"] if entrant.train else 0,
        "total": counts["total"],
        "studies": [comparison.studies(entrant, result.seed) for result in results],
        "steps": [result.steps for result in results],
        "minutes": [round(result.seconds / 60, 2) for result in results],
        "ms": milliseconds(entries),
        "summary": summary(entries),
        "labels": by_label(entries),
        "seeds": [
            {prompt: values["dice"]["mean"] for prompt, values in _prompts(summary(result.entries)).items()}
            for result in results
        ],
        "paper": entrant.paper,
    }


def _prompts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a summary, what is by prompt."""
    return {name: values for name, values in found.items() if name != "numbers"}


def prompts_of(figures: Figures) -> list[str]:
    """All prompts that somebody was asked with: clicks by number, boxes from tight to loose, none."""
    found = dict.fromkeys(name for line in figures["entrants"] for name in _prompts(line["summary"]))

    def order(name: str) -> tuple[int, float]:
        if name.isdigit():
            return 0, int(name)
        return (1, -float(name[3:] or 1)) if name.startswith("box") else (2, 0)

    return sorted(found, key=order)
