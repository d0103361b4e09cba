"""Enlarged images show the same things at the same places."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.data.volume import Volume
from medsa.evaluation.enlarged import enlarged

sides = st.integers(4, 24)


@settings(max_examples=40, deadline=None)
@given(i=sides, j=sides, pixels=st.integers(25, 90), seed=st.integers(0, 99))
def test_what_is_seen_stays_where_it_is(i, j, pixels, seed) -> None:
    random = np.random.default_rng(seed)
    affine = np.eye(4)
    affine[:3] = random.normal(size=(3, 4)) + 2 * np.eye(3, 4)
    low, high = np.sort(random.integers(0, [i, j], size=(2, 2)), axis=0)
    mask = np.zeros((i, j, 3), np.uint8)
    mask[low[0] : high[0] + 1, low[1] : high[1] + 1, 1] = 7
    large, labels = enlarged(Volume(100 * mask.astype(np.int16), affine), mask, pixels)
    assert large.shape == labels.shape
    assert max(large.shape[:2]) == pixels
    assert large.shape[2] == 3
    assert large.voxels.dtype == np.int16
    assert set(np.unique(labels)) == {0, 7}
    assert not labels[..., (0, 2)].any()
    pixel = np.abs(large.affine[:3, :2]).sum()  # a border may lie half a voxel off
    assert np.abs(_centre(labels, large.affine) - _centre(mask, affine)).max() <= 0.5 * pixel + 1e-6
    ends = [
        (volume @ [*corner, 0, 1])[:3]
        for volume, corner in _corners(affine, large.affine, (i, j), large.shape)
    ]
    np.testing.assert_allclose(ends[:2], ends[2:], atol=1e-6)


def test_large_ones_stay_as_they_are() -> None:
    volume, mask = Volume(np.zeros((40, 30, 2), np.float32), np.eye(4)), np.zeros((40, 30, 2), np.uint8)
    assert enlarged(volume, mask, 40) == (volume, mask)
    assert enlarged(volume, mask, 0) == (volume, mask)


def test_colours_and_whole_factors() -> None:
    random = np.random.default_rng(0)
    picture = Volume(random.integers(0, 256, (6, 4, 1, 3), dtype=np.uint8), np.eye(4), "XC")
    mask = random.integers(0, 3, (6, 4, 1), dtype=np.uint8)
    large, labels = enlarged(picture, mask, 18)
    assert (large.shape, large.voxels.dtype, large.is_rgb) == ((18, 12, 1), np.uint8, True)
    np.testing.assert_array_equal(labels, mask.repeat(3, 0).repeat(3, 1))
    np.testing.assert_array_equal(large.voxels[1::3, 1::3], picture.voxels)  # the middle of each voxel
    np.testing.assert_allclose(large.spacing, [1 / 3, 1 / 3, 1])


def _centre(mask, affine):
    return affine[:3, :3] @ np.argwhere(mask).mean(axis=0) + affine[:3, 3]


def _corners(old, new, small, large):
    """The outer corners of both grids."""
    for affine, shape in ((old, small), (new, large)):
        yield affine, (-0.5, -0.5)
        yield affine, (shape[0] - 0.5, shape[1] - 0.5)
