"""Overlap and surface distances agree with what SciPy and SimpleITK say of the same masks."""

import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from medsa.evaluation.metrics import compare

NICKS = [23, 27, 37, 140, 150, 189, 193, 201]
"""Voxels without which a block is 0.5 mm away from itself: single precision is too coarse for that."""
spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.7, 3.0])] * 3)


@st.composite
def pairs(draw):
    shape = draw(st.sampled_from([(9, 8), (7, 6, 5)]))
    masks = [draw(arrays(bool, shape, elements=st.booleans())) for _ in range(2)]
    if draw(st.booleans()):
        masks = [ndimage.binary_opening(mask) for mask in masks]
    return masks, draw(spacings)[: len(shape)]


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask with a neighbour through a face that is not of it."""
    return mask & ~ndimage.binary_erosion(mask)


@settings(deadline=None, max_examples=60)
@given(pairs())
@example(([np.ones((7, 6, 5), bool), ~np.isin(np.arange(210), NICKS).reshape(7, 6, 5)], (1.0, 1.0, 1.0)))
def test_it_is_what_distance_transforms_of_the_surfaces_say(drawn) -> None:
    (one, other), spacing = drawn
    found = compare(one, other, spacing, tolerance=1.6)
    both, total = (one & other).sum(), one.sum() + other.sum()
    assert found["dice"] == pytest.approx(2 * both / total if total else 1)
    assert found["iou"] == pytest.approx(both / (one | other).sum() if total else 1)
    if not one.any() or not other.any():
        assert found["nsd"] == (one.any() == other.any())
        return
    edges = [surface(mask) for mask in (one, other)]
    away = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    there, back = away[1][edges[0]], away[0][edges[1]]
    assert found["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-6)
    near = (there <= 1.6).sum() + (back <= 1.6).sum()
    assert found["nsd"] == pytest.approx(near / (len(there) + len(back)), abs=1e-6)


def by_itk(one: np.ndarray, other: np.ndarray, spacing: tuple, tolerance: float) -> dict[str, float]:
    """The metrics as ITK's overlap measures, contours and Maurer distance maps give them."""
    images = []
    for mask in (one, other):
        image = SimpleITK.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
        image.SetSpacing([float(step) for step in reversed(spacing)])
        images.append(image)
    overlap = SimpleITK.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    contours = [SimpleITK.LabelContour(image, fullyConnected=False) for image in images]
    maps = [
        np.abs(SimpleITK.GetArrayFromImage(
            SimpleITK.SignedMaurerDistanceMap(contour, squaredDistance=False, useImageSpacing=True)
        ))
        for contour in contours
    ]  # fmt: skip
    edges = [SimpleITK.GetArrayFromImage(contour) != 0 for contour in contours]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    return {
        "dice": overlap.GetDiceCoefficient(),
        "iou": overlap.GetJaccardCoefficient(),
        "hd95": max(np.percentile(there, 95), np.percentile(back, 95)),
        "nsd": near / (len(there) + len(back)),
    }


DEGENERATE = {
    "random": lambda shape, rng: rng.random(shape) < 0.4,
    "block": lambda shape, rng: np.pad(np.ones([n - 4 for n in shape], bool), 2),
    "full": lambda shape, rng: np.ones(shape, bool),
    "one voxel": lambda shape, rng: np.arange(np.prod(shape)).reshape(shape) == 0,
    "last voxel": lambda shape, rng: np.arange(np.prod(shape)).reshape(shape) == np.prod(shape) - 1,
    "plane": lambda shape, rng: np.indices(shape)[0] == 3,
}


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0), (3.0, 0.5, 1.2)])
@pytest.mark.parametrize("one", DEGENERATE)
@pytest.mark.parametrize("other", DEGENERATE)
def test_itk_agrees_on_random_and_degenerate_masks(one, other, spacing) -> None:
    rng = np.random.default_rng(3)
    for shape in ((9, 8, 7), (11, 9)):
        steps = spacing[: len(shape)]
        masks = [DEGENERATE[name](shape, rng) for name in (one, other)]
        found = compare(*masks, steps, tolerance=1.25)
        assert found == pytest.approx(by_itk(*masks, steps, 1.25), rel=1e-6, abs=1e-6)


def test_degenerate_masks_have_finite_values() -> None:
    empty, full, voxel = np.zeros((4, 5, 6)), np.ones((4, 5, 6)), np.zeros((4, 5, 6))
    voxel[1, 1, 1] = 1
    spacing = (1.0, 1.0, 2.0)
    assert compare(empty, empty, spacing) == {"dice": 1.0, "iou": 1.0, "hd95": 0.0, "nsd": 1.0}
    assert compare(full, full, spacing) == {"dice": 1.0, "iou": 1.0, "hd95": 0.0, "nsd": 1.0}
    assert compare(voxel, voxel, spacing)["hd95"] == 0
    missed = compare(empty, voxel, spacing)
    assert missed["hd95"] == pytest.approx(np.linalg.norm([4, 5, 12]))
    assert (missed["dice"], missed["nsd"]) == (0, 0)
    moved = compare(np.roll(voxel, 2, axis=2), voxel, spacing, tolerance=3.9)
    assert (moved["hd95"], moved["nsd"]) == (4.0, 0.0)


def test_masks_of_different_shapes_do_not_compare() -> None:
    with pytest.raises(ValueError, match="do not compare"):
        compare(np.ones((2, 2)), np.ones((2, 3)), (1, 1))
