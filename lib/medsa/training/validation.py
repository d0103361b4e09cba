"""How good a run's model is on held-out items, by prompt: it decides which epoch's weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from medsa.prompts.mixture import Interaction
from medsa.training.interaction import Decoder, Protocolled, follow, interact
from medsa.training.items import Item, targets
from medsa.training.losses import dice

Embedded = Callable[[Sequence[Item]], Tensor]
"""(N, C, h, w) of N items."""

BATCH, ONWARDS = 8, 2
FOLLOWED = f"{ONWARDS} slices on"


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


def _parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[first : first + BATCH] for first in range(0, len(items), BATCH)]
