"""How good a run's model is on held-out items, by prompt: it decides which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from medsa.prompts.mixture import Interaction
from medsa.training.interaction import Decoder, Protocolled, follow, interact
from medsa.training.items import TRAIL, Item, targets
from medsa.training.losses import dice

Embedded = Callable[[Sequence[Item]], Tensor]
"""(N, C, h, w) of N items."""

BATCH, ONWARDS = 8, 2
FOLLOWED = f"{ONWARDS} slices on"
FEWEST = 8
"""Slices with an object, and without, that it takes to say where objects end."""


def by_prompt(decoder: Decoder, embedded: Embedded, items: Sequence[Item]) -> dict[str, float]:
    """Mean Dice of `items` at the logits' resolution after one and three clicks, and after a box."""
    found: dict[str, list[float]] = {"1 pt": [], "3 pts": [], "box": []}
    for part in _parts(items):
        with torch.no_grad():
            embedding = embedded(part)
            truth, _ = targets(part, embedding)
            for interaction, names in (
                (Interaction("click", 2), ("1 pt", "", "3 pts")),
                (Interaction("box", 0), ("box",)),
            ):
                values = [
                    dice(torch.from_numpy(answer.shown), truth.cpu() > 0).tolist()
                    for answer in interact(decoder, embedding, part, interaction, Protocolled())
                ]
                values += [values[-1]] * (len(names) - len(values))
                for name, value in zip(names, values, strict=True):
                    if name:
                        found[name] += value
    return {name: float(np.mean(values)) for name, values in found.items()}


def along_trails(decoder: Decoder, embedded: Embedded, items: Sequence[Item]) -> dict[str, float]:
    """Mean Dice on the next slices of the trails of `items`, followed from the truth; nothing without trails.

    A slice on which the object rightly is not found counts as 1.
    """
    found: list[float] = []
    for part in _parts(items):
        with torch.no_grad():
            for beside, answer in follow(decoder, embedded, part, ONWARDS, None):
                truth, _ = targets(beside, answer.logits)
                found += dice(torch.from_numpy(answer.shown), truth.cpu() > 0).tolist()
    return {FOLLOWED: float(np.mean(found))} if found else {}


def ending(decoder: Decoder, embedded: Embedded, items: Sequence[Item]) -> float | None:
    """The predicted IoU below which an object that is followed has best ended: the fewest slices are wrong.

    Along the trails of `items` from the truth; of limits that do as well the middle one. None where too few
    slices hold an object or too few do not.
    """
    trails: list[tuple[list[float], list[bool]]] = []
    for item in items:
        with torch.no_grad():
            seen = list(follow(decoder, embedded, [item], TRAIL, None))
        scores = [float(answer.scores[0, 0]) for _, answer in seen]
        trails.append((scores, [bool(beside[0].mask.any()) for beside, _ in seen]))
    held = [there for _, present in trails for there in present]
    if min(sum(held), len(held) - sum(held)) < FEWEST:
        return None
    limits = np.arange(1, 20) / 20
    wrong = [sum(_wrong(*trail, float(limit)) for trail in trails) for limit in limits]
    best = np.flatnonzero(np.array(wrong) == min(wrong))
    return float(limits[best[len(best) // 2]])


def _wrong(scores: Sequence[float], present: Sequence[bool], limit: float) -> int:
    """Slices beyond the object before its end, and slices of it from there on.

    As in the runtime it has ended with the first of two scores in a row below `limit`, or with the last.
    """
    below = [score < limit for score in scores]
    end = next((n for n in range(len(below)) if all(below[n : n + 2])), len(below))
    return sum(not there for there in present[:end]) + sum(present[end:])


def _parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[first : first + BATCH] for first in range(0, len(items), BATCH)]
