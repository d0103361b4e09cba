"""The promotion gate: a candidate is served only if it is better, still listens, and has lost nothing.

Pure functions on the tables of `medsa.evaluation.protocol`; `measure_tables` makes those tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from medsa.evaluation.forgetting import FORGETTING
from medsa.evaluation.protocol import Case, Rows, by_label, difference, mean, measure
from medsa.segmenter import Segmenter

METRICS = ("1 pt", "3 pts", "10 pts", "auc", "box", "background", "volume")


class Rules(BaseModel):
    """What a candidate has to show; differences of Dice unless they say otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    margin: float = Field(
        0.005, ge=0, description="the gain over clicks must surpass this by more than its noise"
    )
    level: float = Field(0.9, gt=0, lt=1, description="of the bootstrap interval that is called noise")
    label_loss: float = Field(
        0.05, ge=0, description="what one label, or boxes, may lose on held-out patients"
    )
    volume_loss: float = Field(
        0.05, ge=0, description="what one click through the volume may lose at one label"
    )
    forgetting: float = Field(0.05, ge=0, description="what the forgetting set may lose against the base")
    deafness: float = Field(
        0.5, gt=0, description="part of the first click's Dice that a click on background may reach"
    )


@dataclass(frozen=True)
class Tables:
    """What was measured of one model: rows of held-out patients, and of the forgetting set."""

    validation: Rows
    forgetting: Rows


@dataclass(frozen=True)
class Decision:
    """Whether the candidate is served, the sentences that say why, and the figures behind them."""

    promoted: bool
    reasons: tuple[str, ...]
    figures: Mapping[str, float]


def decide(candidate: Tables, current: Tables, base: Tables, rules: Rules | None = None) -> Decision:
    """Compare a candidate with what is served (`current`) and with the model before any training (`base`).

    All tables must come from one call of `measure_tables`. Every reason against the candidate is given, not
    only the first.
    """
    rules = rules or Rules()
    figures = _figures({"candidate": candidate, "current": current, "base": base})
    if not candidate.validation:
        return Decision(False, ("no held-out patient has a label yet, so nothing can be compared",), figures)

    gain = difference(candidate.validation, current.validation, "auc", level=rules.level)
    figures |= {"gain": gain.mean, "gain, low": gain.low, "gain, high": gain.high}
    against = []
    if not gain.low > rules.margin:
        against.append(
            f"not better on held-out patients beyond its noise: Dice over clicks {gain.mean:+.3f} "
            f"({gain.low:+.3f} to {gain.high:+.3f}), wanted above {rules.margin:+.3f}"
        )
    against += _deaf(candidate.validation, rules)
    against += _lost(candidate.validation, current.validation, rules)
    against += _forgotten(candidate.forgetting, base.forgetting, rules)
    if against:
        return Decision(False, tuple(against), figures)
    better = f"Dice over clicks {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) on held-out patients"
    return Decision(True, (better,), figures)


def _deaf(rows: Rows, rules: Rules) -> list[str]:
    first, background = mean(rows, "1 pt"), mean(rows, "background")
    if math.isnan(background) or background <= rules.deafness * first:
        return []
    return [
        f"deaf to prompts: a click far away from the object still gives it (Dice {background:.3f}; a click "
        f"on it gives {first:.3f})"
    ]


def _lost(candidate: Rows, current: Rows, rules: Rules) -> list[str]:
    before, found = by_label(current), []
    for label, rows in by_label(candidate).items():
        for metric, what, most in (
            ("auc", "clicks", rules.label_loss),
            ("box", "boxes", rules.label_loss),
            ("volume", "one click through the volume", rules.volume_loss),
        ):
            change = mean(rows, metric) - mean(before[label], metric)
            if change < -most:
                found.append(f"worse at {label} with {what}: Dice {change:+.3f}")
    return found


def _forgotten(candidate: Rows, base: Rows, rules: Rules) -> list[str]:
    found = []
    for metric, what in (("auc", "clicks"), ("box", "boxes")):
        change = mean(candidate, metric) - mean(base, metric)
        if change < -rules.forgetting:
            found.append(f"has forgotten what the base can do with {what}: Dice {change:+.3f}")
    return found


def _figures(tables: Mapping[str, Tables]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, table in tables.items():
        for where, rows in (("held-out", table.validation), ("forgetting", table.forgetting)):
            for metric in METRICS:
                value = mean(rows, metric)
                if not math.isnan(value):
                    figures[f"{name}, {where}, {metric}"] = round(value, 4)
    return figures


def measure_tables(
    segmenters: Mapping[str, Segmenter],
    validation: Iterable[Case],
    *,
    forgetting: Iterable[Case] = FORGETTING,
    slices: int = 3,
    volumes: int = 0,
    window: str = "auto",
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Tables]:
    """The tables of every segmenter; `progress(done)` counts the cases of both sets."""
    held_out = measure(
        segmenters, validation, slices=slices, volumes=volumes, window=window, progress=progress
    )
    done = len({row.case for row in next(iter(held_out.values()))})
    kept = measure(segmenters, forgetting, slices=1, progress=lambda n: progress(done + n))
    return {name: Tables(held_out[name], kept[name]) for name in segmenters}
