"""What the starter adapter learns from: drawn scenes with their truth, and masks that the base stands by."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.adapters.conftest import one_thread, small_sam

from medsa.training.engine import grid_of
from medsa.training.items import Pictures
from medsa.training.pictures import as_volume, brain_slices, packaged, varied
from medsa.training.scenes import KINDS, draw_scene
from medsa.training.teacher import random_boxes, teacher_items

__all__ = ["one_thread"]


@settings(deadline=None, max_examples=15)
@given(kind=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 10**6))
def test_a_scene_shows_its_objects_and_is_drawn_the_same_again(kind: str, seed: int) -> None:
    one, again = (draw_scene(np.random.default_rng(seed), kind) for _ in range(2))
    assert one.pixels.dtype == np.uint8
    assert (one.pixels == again.pixels).all()
    for mask in one.objects.values():
        assert mask.shape == one.pixels.shape[:2]
        assert 25 <= mask.sum() < mask.size


def test_scenes_are_both_grey_and_coloured_their_objects_small_and_large_lighter_and_darker() -> None:
    scenes = [draw_scene(np.random.default_rng(seed)) for seed in range(60)]
    assert {scene.pixels.ndim for scene in scenes} == {2, 3}
    areas, lighter = [], []
    for scene in scenes:
        grey = scene.pixels.reshape(*scene.pixels.shape[:2], -1).mean(axis=2)
        for mask in scene.objects.values():
            areas.append(mask.mean())
            lighter.append(grey[mask].mean() > grey[~mask].mean())
    assert min(areas) < 0.01
    assert max(areas) > 0.3
    assert 0.2 < np.mean(lighter) < 0.8


def test_a_fundus_has_a_cup_within_its_disc() -> None:
    objects = draw_scene(np.random.default_rng(3), "fundus").objects
    assert (objects["cup"] <= objects["disc"]).all()
    assert (objects["rim"] == (objects["disc"] & ~objects["cup"])).all()


def test_packaged_pictures_are_there_and_vary_under_a_seed() -> None:
    pictures = packaged()
    assert len(pictures) >= 10
    pixels = next(iter(pictures.values()))
    one, same, other = (varied(pixels, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one == same).all()
    assert one.shape != other.shape or (one != other).any()


def test_brain_slices_show_a_head() -> None:
    brain = brain_slices()(np.random.default_rng(0))
    assert brain.dtype == np.uint8
    assert 0.2 < (brain > 20).mean() < 0.9


class Sure:
    """Answers every box with the disc it knows, as a base would that is sure of it."""

    image_size = 48

    def __init__(self, disc: np.ndarray, sure: bool = True) -> None:
        self.disc, self.sure, self.asked = torch.from_numpy(disc), sure, 0

    def decode(self, embedding, boxes):
        self.asked += len(boxes)
        logits = torch.where(self.disc, 9.0, -9.0).expand(len(boxes), 1, -1, -1)
        if not self.sure and self.asked > 16:
            logits = logits.roll(9, dims=-1)
        return logits, torch.ones(len(boxes), 1)


@pytest.mark.parametrize(("sure", "found"), [(True, 1), (False, 0)])
def test_a_mask_is_kept_once_and_only_if_the_base_stands_by_it(sure: bool, found: int) -> None:
    y, x = np.mgrid[:48, :48]
    disc = (y - 20) ** 2 + (x - 24) ** 2 < 100
    picture = Pictures(as_volume(np.zeros((48, 48), np.uint8)), grid_of(small_sam("tiny_vit"))).around(0)
    embedding = torch.zeros(1, 32, 12, 12)
    items = teacher_items(Sure(disc, sure), picture, embedding, "s", np.random.default_rng(0))
    assert len(items) == found
    assert all((item.mask == disc).all() for item in items)


def test_random_boxes_lie_on_the_slice() -> None:
    grid = grid_of(small_sam("tiny_vit"))
    picture = Pictures(as_volume(np.zeros((30, 48), np.uint8)), grid).around(0)
    boxes = random_boxes(picture, np.random.default_rng(0), 200)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([47.0, 29.0])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
