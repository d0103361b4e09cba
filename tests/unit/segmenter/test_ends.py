"""An object's end is seen: a mask that looks like its neighbour's surroundings is no part of the object."""

import numpy as np
import pytest

from medsa.adapters.state import load_adapter, starter_adapter
from medsa.data.volume import Volume
from medsa.evaluation import dice
from medsa.prompts import Prompt
from medsa.sam import load_sam
from medsa.segmenter import Segmenter
from medsa.segmenter.propagate import same_object, tones_of

MASK = np.zeros((32, 32), bool)
MASK[10:20, 12:22] = True


def pixels(inside: float, outside: float) -> np.ndarray:
    return np.where(MASK, inside, outside).astype(np.float32)[None]


def test_what_looks_like_the_object_goes_on_and_what_looks_like_its_surroundings_does_not() -> None:
    beside = tones_of(MASK, pixels(180, 40))
    assert same_object(tones_of(MASK, pixels(150, 40)), beside)
    assert not same_object(tones_of(MASK, pixels(60, 60)), beside)
    assert not same_object(tones_of(MASK, pixels(180, 180)), tones_of(MASK, pixels(40, 180)))


def test_without_contrast_or_a_mask_tones_decide_nothing() -> None:
    faint = tones_of(MASK, pixels(60, 50))
    assert same_object(tones_of(MASK, pixels(50, 50)), faint)
    assert tones_of(np.zeros_like(MASK), pixels(1, 0)) is None
    assert same_object(None, faint)
    assert same_object(faint, None)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_drawn_ellipsoid_is_followed_to_its_ends_and_no_further(adapted: bool) -> None:
    shape, centre, radii = (64, 56, 12), (30, 24, 6), (16, 12, 4)
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    truth = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1
    values = np.where(truth, 180, 40) + np.random.default_rng(0).normal(0, 6, shape)
    sam, starter = load_sam("lite_medsam", accelerate=False), starter_adapter("lite_medsam")
    assert starter is not None
    segmenter = Segmenter(load_adapter(sam, starter) if adapted else sam)
    volume = Volume(np.asfortranarray(values.astype(np.int16)), np.diag([1.5, 1.5, 3.0, 1.0]))
    result = segmenter.segment_volume(volume, Prompt(box=np.array([[14, 12, 6], [46, 36, 6]])))
    assert set(result.slices) == set(np.flatnonzero(truth.any(axis=(0, 1))))
    assert dice(result.mask, truth) > 0.85
