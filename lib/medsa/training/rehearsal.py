"""What a site's training rehearses beside its own labels, to forget less: drawn scenes and bodies."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from medsa.data.volume import Volume
from medsa.evaluation.forgetting import DrawnAbdomen
from medsa.training.cases import Nameless
from medsa.training.items import REHEARSED
from medsa.training.pictures import as_volume
from medsa.training.scenes import KINDS, draw_scene

Read = tuple[Volume, NDArray[np.uint8], dict[int, str]]

SEED = 7


def rehearsal(count: int) -> list[Nameless]:
    """So many drawn cases, the same ones every time; none of them is in the forgetting set."""
    found = []
    for n in range(count):
        read = partial(_abdomen, n) if n % (len(KINDS) + 1) == len(KINDS) else partial(_scene, n)
        found.append(Nameless(f"drawn {n}", f"drawn {n}", read))
    return found


def _scene(n: int) -> Read:
    scene = draw_scene(np.random.default_rng((SEED, n)), list(KINDS)[n % (len(KINDS) + 1)])
    volume = as_volume(scene.pixels)
    mask = np.zeros(volume.shape, np.uint8, order="F")
    for value, drawn in enumerate(scene.objects.values(), start=1):
        if not mask[drawn.T].any():  # a label map holds no object over another
            mask[drawn.T] = value
    return volume, mask, {int(value): REHEARSED for value in np.unique(mask) if value}


def _abdomen(n: int) -> Read:
    volume, mask, names = DrawnAbdomen((160, 160, 4), 100 + n).read()
    return volume, mask, dict.fromkeys(names, REHEARSED)
