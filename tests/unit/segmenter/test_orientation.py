"""Which way round a file stores its volume changes nothing of what is found in it."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Segmenter, Session, Start
from medsa.segmenter.ahead import Ahead
from medsa.segmenter.automatic import find, learn
from medsa.segmenter.classes import classify_volume
from medsa.training.classes import slabs_of_study
from medsa.training.engine import grid_of
from medsa.training.items import items_of

PLANES = {"axial": ("RL", "AP", "SI"), "coronal": ("RL", "SI", "AP"), "sagittal": ("AP", "SI", "RL")}
AXCODES = [
    "".join(codes)
    for rows, columns, slices in PLANES.values()
    for first, second in ((rows, columns), (columns, rows))
    for codes in product(first, second, slices)
]
SHAPE = (32, 28, 7)


def scan(seed: int = 0) -> tuple[Volume, np.ndarray]:
    """A volume in LPS, and what is in it: nothing about it is symmetrical."""
    voxels = np.random.default_rng(seed).normal(60, 5, SHAPE)
    truth = np.zeros(SHAPE, bool)
    truth[6:15, 5:20, 1:5] = truth[6:22, 5:11, 2:4] = True
    voxels[truth] += 120
    affine = np.diag([-1.0, -1.2, 3.0, 1.0])
    affine[:3, 3] = 11, -7, 40
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]  # oblique
    return Volume(np.asfortranarray(voxels.astype(np.int16)), tilt @ affine, "MR"), truth


def stored_as(codes: str, volume: Volume) -> tuple[Volume, object, object]:
    """The same scan in a file of other axes, and how arrays and voxels (N, 3) get there."""
    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(codes))
    to_old = inv_ornt_aff(change, volume.shape)

    def array(values: np.ndarray) -> np.ndarray:
        return np.asfortranarray(apply_orientation(values, change))

    def voxels(points: list[list[float]]) -> np.ndarray:
        homogeneous = np.c_[np.array(points, float).reshape(-1, 3), np.ones(len(points))]
        return (homogeneous @ np.linalg.inv(to_old).T)[:, :3]

    return Volume(array(volume.voxels), volume.affine @ to_old, volume.modality), array, voxels


AXIAL = [codes for codes in AXCODES if codes[2] in "SI"]


@pytest.mark.parametrize("codes", AXCODES)
def test_every_volume_is_seen_with_the_left_at_the_right_and_the_head_or_the_face_up(codes: str) -> None:
    volume, _, _ = stored_as(codes, scan()[0])
    orientation = Orientation.of(volume)
    seen = orientation.volume(volume)
    plane = {"S": "LPS", "I": "LPS", "A": "LIP", "P": "LIP", "R": "PIL", "L": "PIL"}[codes[2]]
    assert (io_orientation(seen.affine) == axcodes2ornt(plane)).all()
    assert (orientation.stored(seen.voxels) == volume.voxels).all()
    corner = np.array([[1.0, 2.0, 3.0]])
    at = orientation.points(corner)
    assert seen.voxels[tuple(at[0].astype(int))] == volume.voxels[1, 2, 3]
    there, here = (v.affine @ np.append(p, 1) for v, p in ((seen, at[0]), (volume, corner[0])))
    assert np.allclose(there, here)
    assert orientation.slice_of(orientation.slice_of(3)) == 3


def test_what_is_stored_as_it_is_looked_at_is_not_copied() -> None:
    volume, _ = scan()
    assert Orientation.of(volume).volume(volume) is volume


@settings(deadline=None, max_examples=12)
@given(codes=st.sampled_from(AXIAL), positive=st.booleans(), boxed=st.booleans())
def test_a_file_in_another_orientation_gives_the_same_masks(
    segmenter: Segmenter, codes: str, positive: bool, boxed: bool
) -> None:
    volume, _ = scan()
    other, array, voxels = stored_as(codes, volume)
    further = [[20, 8, 3]] if positive else [[10, 18, 2]]
    sessions = Session(), Session()
    for clicks in ([], further):
        on, off = ([[9, 8, 2], *clicks], []) if positive else ([[9, 8, 2]], clicks)
        box = [[5, 4, 1], [22, 20, 4]] if boxed else None
        asked = Prompt(foreground=on, background=off, box=box)
        turned = Prompt(voxels(on), voxels(off), None if box is None else voxels(box))
        one = segmenter.segment_volume(volume, asked, window="0,255", session=sessions[0])
        two = segmenter.segment_volume(other, turned, window="0,255", session=sessions[1])
        assert (array(one.mask) == two.mask).all()
        assert two.mask.flags.f_contiguous
        there = Orientation.of(other).slice_of
        assert {there(k): score for k, score in one.scores.items()} == two.scores
        assert set(two.slices) == set(two.scores)
    k = int(voxels([[9, 8, 2]])[0, 2])
    one = segmenter.segment_slice(volume, Prompt(foreground=[[9, 8, 2]]), 2)
    two = segmenter.segment_slice(other, Prompt(foreground=voxels([[9, 8, 2]])), k)
    assert (array(one.mask) == two.mask).all()
    assert two.slices == (k,)
    assert two.cached


def test_a_mask_to_begin_with_is_corrected_alike_in_every_orientation(segmenter: Segmenter) -> None:
    volume, truth = scan()
    other, array, voxels = stored_as("ARI", volume)
    one = segmenter.segment_volume(volume, Prompt(background=[[9, 8, 2]]), start=Start(truth))
    turned = Prompt(background=voxels([[9, 8, 2]]))
    two = segmenter.segment_volume(other, turned, start=Start(array(truth)))
    assert (array(one.mask) == two.mask).all()
    assert (one.mask != truth).any()


def test_prototypes_and_what_they_find_do_not_depend_on_orientation(segmenter: Segmenter) -> None:
    volume, truth = scan()
    other, array, _ = stored_as("RAI", volume)
    known, turned = learn(segmenter, volume, truth), learn(segmenter, other, array(truth))
    one = find(segmenter, volume, {"x": known})["x"]
    two = find(segmenter, other, {"x": turned})["x"]
    assert (array(one.mask) == two.mask).all()
    assert one.mask.any()


def test_what_is_learnt_from_is_seen_as_it_is_served(segmenter: Segmenter) -> None:
    volume, truth = scan()
    other, array, _ = stored_as("PLI", volume)
    here, there = (
        items_of(v, m.astype(np.uint8), {1: "x"}, grid_of(segmenter.sam), "study")
        for v, m in ((volume, truth), (other, array(truth)))
    )
    assert [item.picture.digest for item in here] == [item.picture.digest for item in there]
    assert all((a.mask == b.mask).all() for a, b in zip(here, there, strict=True))


class Striped:
    """A classifier that goes by place: what lies in the upper left of the first slices is its label."""

    depth, labels, image_size = 3, ("x",), 64

    def __init__(self, config) -> None:
        self.config = config

    def classify(self, images):
        logits = images.new_zeros(len(images), 2, 64, 64)
        logits[:, 1] = -4.0
        logits[:2, 1, :30, :20] = 4.0
        return logits


@pytest.mark.parametrize("codes", ["RAI", "ALS", "LPI"])
def test_models_without_prompts_see_and_learn_the_same_in_every_orientation(
    segmenter: Segmenter, codes: str
) -> None:
    volume, truth = scan()
    other, array, _ = stored_as(codes, volume)
    model = Striped(segmenter.sam.config)
    one, two = classify_volume(model, volume), classify_volume(model, other)
    assert one.mask.any()
    assert (array(one.mask) == two.mask).all()
    assert one.sure == two.sure
    k = Orientation.of(other).slice_of(1)
    assert (classify_volume(model, other, [k]).mask[:, :, k] == two.mask[:, :, k]).all()
    here, there = (
        slabs_of_study(v, m.astype(np.uint8), {1: "x"}, grid_of(segmenter.sam, 3), "study", most=4)
        for v, m in ((volume, truth), (other, array(truth)))
    )
    digests = [[item.picture.digest for item in slab] for slab in here]
    assert digests == [[item.picture.digest for item in slab] for slab in there]


def test_slices_encoded_ahead_are_those_beside_the_click_in_the_file() -> None:
    import torch

    from medsa.sam import build_sam

    torch.manual_seed(0)
    segmenter = Segmenter(build_sam("lite_medsam", image_size=64))
    other, _, _ = stored_as("RAI", scan()[0])
    ahead = Ahead(1, quiet=0.0)
    try:
        ahead.around(segmenter, other, "auto", 1)
        assert ahead.wait_until_done(120)
    finally:
        ahead.close()
    for k, known in ((0, True), (2, True), (5, False)):
        assert segmenter.segment_slice(other, Prompt(foreground=[[9, 8, k]]), k).cached is known
