"""What a step asks for is what the runtime would see, on the grid of the logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.adapters.conftest import one_thread, small_sam

from medsa.data.geometry import LPS_TO_RAS
from medsa.data.model_input import Frame, slice_input
from medsa.data.volume import Volume
from medsa.data.window import choose_window
from medsa.training.augment import Augmentation, Augmenter
from medsa.training.embeddings import EmbeddingStore
from medsa.training.engine import grid_of
from medsa.training.items import (
    BEYOND,
    TRAIL,
    Item,
    Picture,
    Pictures,
    items_of,
    runs_of,
    with_few_empty,
)

__all__ = ["one_thread"]


def study(colour: bool = False) -> tuple[Volume, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 40, 9), np.uint8)
    mask[10:30, 8:20, 2:7] = 1
    mask[35:50, 20:36, 4:6] = 2
    mask[5:7, 5:6, 0] = 3
    voxels = rng.integers(0, 200, (60, 40, 9, 3) if colour else (60, 40, 9)).astype(
        np.uint8 if colour else np.float32
    )
    return Volume(np.asfortranarray(voxels), LPS_TO_RAS, "MR"), mask


@pytest.mark.parametrize("colour", [False, True])
def test_a_picture_is_the_runtimes_input_but_for_rounding(colour: bool) -> None:
    sam = small_sam("tiny_vit")
    volume, _ = study(colour)
    grid = grid_of(sam)
    picture = Pictures(volume, grid).around(4)
    expected = slice_input(volume, 4, choose_window(volume), sam.config, grid.frame(volume))
    assert torch.allclose(picture.image(sam.config), expected, atol=1 / 100)
    assert picture.colours(0).shape == (3 if colour else 1, 256, 256)


def test_items_are_every_label_on_every_slice_that_holds_it() -> None:
    volume, mask = study()
    grid = grid_of(small_sam("tiny_vit"))
    items = items_of(volume, mask, {1: "one", 2: "two", 3: "tiny", 9: "absent"}, grid, "study")
    assert [item.label for item in items].count("one") == 5
    assert [item.label for item in items].count("two") == 2
    assert {item.label for item in items} == {"one", "two"}
    frame = Frame.of(volume, grid.backbone, grid.size)
    assert (items[0].mask == frame.mask_to_model(mask[:, :, 2] == 1, grid.cells)).all()
    for most in (1, 2, 3, 4):
        assert len(items_of(volume, mask, {1: "one"}, grid, "study", most=most)) == most
    few = items_of(volume, mask, {1: "one"}, grid, "study", most=2)
    assert len(few) == 2


def test_empty_items_lie_beside_the_object_and_are_asked_for_with_its_neighbour() -> None:
    volume, mask = study()
    grid = grid_of(small_sam("tiny_vit"))
    items = items_of(volume, mask, {1: "one"}, grid, "study", empty=True)
    absent = [item for item in items if item.around is not None]
    assert len(absent) == 2
    for item in absent:
        assert not item.mask.any()
        assert item.prompted.any()


def test_few_of_the_empty_items_are_kept_as_a_part_of_the_others() -> None:
    volume, mask = study()
    items = items_of(volume, mask, {1: "one", 2: "two"}, grid_of(small_sam("tiny_vit")), "study", empty=True)
    assert len([item for item in items if item.around is not None]) == 4
    for share, left in ((0.0, 0), (0.4, 2), (1.0, 4)):
        kept = with_few_empty(items, share)
        assert len([item for item in kept if item.around is not None]) == left
        assert len([item for item in kept if item.around is None]) == 7


def test_a_slab_lies_in_its_volume_as_where_it_is_asked_about() -> None:
    volume, mask = study()
    grid = grid_of(small_sam("tiny_vit"), depth=5)
    pictures = Pictures(volume, grid)
    first, middle = pictures.around(0), pictures.around(4)
    assert pictures.around(1) is first
    assert len({part.tobytes() for part in first.pixels}) == 5
    assert middle.pixels[0] is first.pixels[2]
    assert (pictures.slices(0), pictures.slices(8)) == (range(5), range(4, 9))
    thin = replace(volume, voxels=volume.voxels[:, :, 2:5])
    assert Pictures(thin, grid).slices(1) == range(3)
    items = items_of(thin, mask[:, :, 2:5], {1: "one"}, grid, "study")
    assert [item.at for item in items] == [0, 1, 2]
    assert len({id(item.picture) for item in items}) == 1


def test_empty_slices_are_a_part_of_the_slabs_not_of_their_many_objects() -> None:
    volume, mask = study()
    items = items_of(volume, mask, {1: "one"}, grid_of(small_sam("tiny_vit"), depth=5), "study", empty=True)
    held = [item for item in items if item.around is None]
    slabs = {id(item.picture) for item in held}
    assert len(held) > 3 * len(slabs)
    kept = with_few_empty(items, 1 / len(slabs))
    assert len([item for item in kept if item.around is not None]) == 1


def test_embeddings_come_from_disk_the_second_time_and_are_those_of_the_model(tmp_path, monkeypatch) -> None:
    sam = small_sam("tiny_vit")
    picture = Pictures(study()[0], grid_of(sam)).around(4)
    store = EmbeddingStore(sam, tmp_path / "kept")
    first = store.get(picture)
    assert torch.allclose(first.float(), sam.encode(picture.image(sam.config)), atol=1e-2)
    monkeypatch.setattr(sam, "encode", lambda _: pytest.fail("it was on disk"))
    assert torch.equal(store.get(picture), first)
    store.remove()
    assert not (tmp_path / "kept").exists()


CHANGES = Augmentation(flip_share=0.5, turn_share=0.8, intensity_share=0.5, noise_share=0.5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000))
def test_augmentation_moves_picture_and_mask_together_and_repeats_under_its_seed(seed: int) -> None:
    _, mask = study()
    bright = Volume(np.asfortranarray(np.where(mask == 1, 200.0, 20.0), np.float32), np.eye(4), "MR")
    (item,) = items_of(bright, mask, {1: "one"}, grid_of(small_sam("tiny_vit")), "study", most=1)
    plain = Augmenter(Augmentation(flip_share=0.5, turn_share=0.8))
    one, other = (plain([item], np.random.default_rng(seed))[0] for _ in range(2))
    assert (one.mask == other.mask).all()
    assert (one.picture.pixels[0] == other.picture.pixels[0]).all()
    seen = one.picture.frame.pad(torch.from_numpy(one.picture.pixels[0]).float())[0]
    cells = torch.nn.functional.avg_pool2d(seen[None, None], one.picture.frame.size // item.side)[0, 0] > 127
    assert (cells.numpy() & one.mask).sum() > 0.8 * (cells.numpy() | one.mask).sum()


def test_an_empty_item_keeps_its_place_when_it_is_augmented() -> None:
    volume, mask = study()
    items = items_of(volume, mask, {1: "one"}, grid_of(small_sam("tiny_vit")), "study", empty=True)
    absent = next(item for item in items if item.around is not None)
    changed = Augmenter(CHANGES)([absent], np.random.default_rng(1))[0]
    assert (changed.prompted == absent.prompted).all()
    assert not changed.mask.any()


def test_masks_survive_their_packing() -> None:
    volume, mask = study()
    item = items_of(volume, mask, {1: "one"}, grid_of(small_sam("tiny_vit")), "study")[0]
    assert (Item.of(item.picture, item.mask, "one", "study").mask == item.mask).all()


@settings(deadline=None)
@given(seed=st.integers(0, 1000), size=st.integers(1, 400))
def test_a_coarser_item_covers_the_same_place_and_never_loses_its_object(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros(48 * 48, bool)
    mask[rng.choice(48 * 48, size, replace=False)] = True
    mask = mask.reshape(48, 48)
    picture = Picture((np.zeros((1, 48, 48), np.uint8),), Frame(48, 48, 48))
    coarse = Item.of(picture, mask, "one", "study").coarser()
    assert coarse.side == 24
    assert coarse.mask.any()
    assert not (coarse.mask & ~mask.reshape(24, 2, 24, 2).any(axis=(1, 3))).any()


def test_in_a_slab_every_slice_that_holds_the_object_is_asked_for() -> None:
    volume, mask = study()
    sam = small_sam("tiny_vit")
    alone = {
        item.picture.pixels[0].tobytes(): item.mask.tobytes()
        for item in items_of(volume, mask, {1: "one"}, grid_of(sam), "study")
    }
    slab = items_of(volume, mask, {1: "one"}, grid_of(sam, depth=3), "study", most=3)
    assert len({id(item.picture) for item in slab}) == 1
    assert len(slab) > 1
    for item in slab:
        assert item.mask.tobytes() == alone[item.picture.pixels[item.at].tobytes()]
        assert item.coarser().at == item.at


def test_items_of_one_picture_are_augmented_alike() -> None:
    volume, mask = study()
    items = items_of(volume, mask, {1: "one"}, grid_of(small_sam("tiny_vit"), depth=3), "study", most=3)
    changed = Augmenter(CHANGES)(items, np.random.default_rng(4))
    assert len({id(item.picture) for item in changed}) == 1
    again = Augmenter(CHANGES)(items[1:], np.random.default_rng(4))
    assert [item.mask.tobytes() for item in again] == [item.mask.tobytes() for item in changed[1:]]


def test_a_slice_of_each_of_many_studies_is_now_one_at_the_end_and_now_in_the_middle() -> None:
    volume, mask = study()
    grid = grid_of(small_sam("tiny_vit"))
    whole = {item.picture.digest for item in items_of(volume, mask, {1: "one"}, grid, "s")}
    one_each = [items_of(volume, mask, {1: "one"}, grid, f"s{n}", most=1) for n in range(40)]
    assert {items[0].picture.digest for items in one_each} == whole


def test_runs_of_neighbours_give_each_item_a_trail_that_leads_beyond_the_objects_end() -> None:
    volume, mask = study()
    grid = grid_of(small_sam("tiny_vit"))
    frame = Frame.of(volume, grid.backbone, grid.size)
    whole = items_of(volume, mask, {1: "one"}, grid, "study", run=3)
    assert len(whole) == 5  # slices 2 to 6 hold it; 0, 1, 7 and 8 lie beyond
    for n, item in enumerate(whole):
        ways = [list(range(3 + n, 9)), list(range(1 + n, -1, -1))]
        expected = max(ways, key=len)[:TRAIL]
        assert len(item.trail) == len(expected)
        for part, k in zip(item.trail, expected, strict=True):
            assert (part.mask == frame.mask_to_model(mask[:, :, k] == 1, grid.cells)).all()
            assert part.picture.digest == Pictures(volume, grid).around(k).digest
        assert [half.side for half in item.coarser().trail] == [grid.cells // 2] * len(expected)
    assert not whole[2].trail[-1].mask.any()
    pictures = {id(part.picture) for item in whole for part in (item, *item.trail)}
    assert len(pictures) == 9


@settings(deadline=None, max_examples=30)
@given(
    first=st.integers(0, 20), held=st.integers(1, 30), most=st.integers(1, 40), run=st.integers(2, 8),
    study=st.text(max_size=4),
)  # fmt: skip
def test_runs_lie_in_the_volume_near_the_object_and_are_no_more_than_wanted(
    first: int, held: int, most: int, run: int, study: str
) -> None:
    runs = runs_of(np.arange(first, first + held), 40 + first, max(run, most), run, study)
    chosen = [k for part in runs for k in part]
    assert chosen == sorted(set(chosen))
    assert max(0, first - BEYOND) <= chosen[0]
    assert chosen[-1] <= min(39 + first, first + held - 1 + BEYOND)
    assert len(chosen) <= max(run, most)
    assert all(np.diff(part).tolist() == [1] * (len(part) - 1) for part in runs)
    assert any(len(part) > 1 for part in runs) or first + held == 1
