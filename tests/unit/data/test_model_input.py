"""A slice and its prompts go to the model and come back where they were."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medsa.data.model_input import Frame, slice_input
from medsa.data.volume import Volume
from medsa.data.window import Window
from medsa.sam import read_backbone

frames = st.builds(
    Frame,
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.sampled_from([64, 256, 1024]),
    stretch=st.booleans(),
)
coordinates = st.floats(-50, 800)


@given(frame=frames, points=arrays(np.float64, (4, 2), elements=coordinates))
def test_points_go_there_and_back(frame: Frame, points: np.ndarray) -> None:
    there = frame.points_to_model(points)
    assert frame.points_to_voxel(there) == pytest.approx(points, abs=1e-6)


@given(frame=frames, boxes=arrays(np.float64, (3, 4), elements=coordinates))
def test_boxes_go_there_and_back(frame: Frame, boxes: np.ndarray) -> None:
    there = frame.boxes_to_model(boxes)
    assert frame.boxes_to_voxel(there) == pytest.approx(boxes, abs=1e-6)


@given(frame=frames)
def test_the_slice_lies_in_the_square_and_touches_its_far_side(frame: Frame) -> None:
    assert max(frame.rows, frame.columns) == frame.size
    assert min(frame.rows, frame.columns) >= 1
    corners = frame.points_to_model(np.array([[-0.5, -0.5], [frame.width - 0.5, frame.height - 0.5]]))
    assert corners == pytest.approx(np.array([[-0.5, -0.5], [frame.columns - 0.5, frame.rows - 0.5]]))


@settings(deadline=None)
@given(
    width=st.integers(20, 300),
    height=st.integers(20, 300),
    low=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)),
    extent=st.tuples(st.floats(0.25, 0.5), st.floats(0.25, 0.5)),
    size=st.sampled_from([256, 1024]),
)
def test_a_mask_goes_there_and_back_to_within_a_pixel_at_its_border(width, height, low, extent, size) -> None:
    frame = Frame(width, height, size)
    mask = np.zeros((width, height), bool)
    i, j = int(low[0] * width), int(low[1] * height)
    mask[i : i + max(3, int(extent[0] * width)), j : j + max(3, int(extent[1] * height))] = True
    there = frame.mask_to_model(mask, 256)
    back = frame.logits_to_voxel(torch.from_numpy(np.where(there, 8.0, -8.0)).float()[None])[0].numpy().T > 0
    border = 1 + int(np.ceil(max(width, height) / 256))
    wrong = np.argwhere(mask != back)
    sides_i, sides_j = (
        np.array([i, np.nonzero(mask.any(1))[0].max()]),
        np.array([j, np.nonzero(mask.any(0))[0].max()]),
    )
    for a, b in wrong:
        assert min(abs(sides_i - a).min(), abs(sides_j - b).min()) <= border


def _volume(shape: tuple[int, ...], dtype: type = np.int16) -> Volume:
    voxels = np.random.default_rng(0).integers(0, 255, shape).astype(dtype)
    return Volume(np.asfortranarray(voxels), np.eye(4))


def test_a_voxel_is_where_its_prompt_points() -> None:
    volume = _volume((60, 40, 3))
    volume.voxels[...] = 0
    volume.voxels[47, 12, 1] = 200
    backbone = read_backbone("lite_medsam")
    frame = Frame.of(volume, backbone, 256)
    image = slice_input(volume, 1, Window(0, 200), backbone, frame)
    y, x = np.unravel_index(int(image[0, 0].argmax()), (256, 256))
    assert frame.points_to_model(np.array([47, 12])) == pytest.approx(np.array([x, y]), abs=2.5)


def test_without_pixel_statistics_a_slice_spans_zero_to_one_and_its_padding_is_zero() -> None:
    volume, backbone = _volume((50, 30, 2)), read_backbone("lite_medsam")
    frame = Frame.of(volume, backbone, 256)
    image = slice_input(volume, 0, Window(0, 255), backbone, frame)
    assert image.shape == (1, 3, 256, 256)
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)
    assert (image[..., frame.rows :, :] == 0).all()


def test_with_pixel_statistics_every_channel_is_normalised() -> None:
    volume, backbone = _volume((64, 64, 1, 3), np.uint8), read_backbone("vit_b")
    volume.voxels[...] = np.array([124, 116, 104], np.uint8)
    image = slice_input(volume, 0, Window(0, 255), backbone, Frame.of(volume, backbone, 1024))
    assert image.abs().max() < 0.02


def test_a_slice_without_contrast_gives_finite_pixels() -> None:
    volume, backbone = _volume((20, 20, 1)), read_backbone("lite_medsam")
    volume.voxels[...] = 7
    image = slice_input(volume, 0, Window(7, 8), backbone, Frame.of(volume, backbone, 256))
    assert torch.isfinite(image).all()
