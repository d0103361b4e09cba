"""A mask that looks like its neighbour's surroundings is no part of the object."""

import numpy as np

from medsa.segmenter.tones import same_object, tones_of

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
