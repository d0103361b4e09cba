"""An object is followed to its ends with the model that ships, from a click or a box."""

import numpy as np
import pytest

from medsa.adapters.state import load_adapter, starter_adapter
from medsa.data.volume import Volume
from medsa.evaluation import dice
from medsa.prompts import Prompt
from medsa.sam import load_sam
from medsa.segmenter import Segmenter, Session

SHAPE, CENTRE = (64, 56, 10), (30, 24, 4)
BOX = Prompt(box=np.array([[14, 12, 4], [46, 36, 4]]))


def ellipsoid() -> np.ndarray:
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, CENTRE, (16, 12, 3), strict=True)) < 1


def drawn(truth: np.ndarray) -> Volume:
    values = np.where(truth, 180, 40) + np.random.default_rng(0).normal(0, 6, SHAPE)
    return Volume(np.asfortranarray(values.astype(np.int16)), np.diag([1.5, 1.5, 3.0, 1.0]))


@pytest.fixture(scope="module")
def base() -> Segmenter:
    return Segmenter(load_sam("lite_medsam", accelerate=False))


@pytest.fixture(params=["base", "starter"])
def segmenter(request, base) -> Segmenter:
    if request.param == "base":
        return base
    starter = starter_adapter("lite_medsam")
    assert starter is not None
    return base.beside(load_adapter(base.sam, starter))


def test_a_drawn_ellipsoid_is_followed_to_its_ends_and_no_further(segmenter) -> None:
    truth = ellipsoid()
    result = segmenter.segment_volume(drawn(truth), BOX)
    assert set(result.slices) == set(np.flatnonzero(truth.any(axis=(0, 1))))
    assert dice(result.mask, truth) > 0.85


def test_a_slice_that_does_not_show_the_object_does_not_end_it(segmenter) -> None:
    truth = ellipsoid()
    volume = drawn(truth)
    volume.voxels[:, :, 5] = 40
    mask = segmenter.segment_volume(volume, BOX).mask
    assert mask[:, :, 5].any()
    assert dice(mask[:, :, 6], truth[:, :, 6]) > 0.7


def test_a_part_that_was_not_reached_is_reached_by_a_click_on_it_and_the_rest_stays(segmenter) -> None:
    truth = ellipsoid()
    truth[26:38, 18:32, 9] = True
    session, volume = Session(), drawn(truth)
    first = segmenter.segment_volume(volume, BOX, session=session)
    assert 9 not in first.slices
    clicked = Prompt(foreground=[[31, 25, 9]], box=BOX.box)
    second = segmenter.segment_volume(volume, clicked, session=session)
    assert second.mask[31, 25, 9]
    assert (second.mask[:, :, list(first.slices)] == first.mask[:, :, list(first.slices)]).all()
