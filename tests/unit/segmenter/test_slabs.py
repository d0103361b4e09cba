"""Methods with depth see slabs: cut always alike, blended where they overlap, one slice a slab of one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medsa.adapters.inject import AdaptedSam, adapt
from medsa.data.volume import Volume
from medsa.prompts.prompt import Prompt
from medsa.sam import build_sam
from medsa.segmenter import Segmenter
from medsa.segmenter.request import Request
from medsa.segmenter.slabs import slabs_of, slabs_with

CLICK = Prompt(foreground=[[12, 10, 2]])


@given(slices=st.integers(1, 60), depth=st.integers(2, 9))
def test_every_slice_lies_in_a_slab_of_the_methods_depth_and_parts_sum_to_one(slices, depth) -> None:
    slabs = slabs_of(slices, depth)
    assert all(slab.length == min(depth, slices) and slab.slices[-1] < slices for slab in slabs)
    for k in range(slices):
        parts = slabs_with(k, slices, depth)
        assert sum(part for _, part in parts) == pytest.approx(1)
        assert all(k in slab for slab, _ in parts)


@pytest.fixture(scope="module")
def deep() -> AdaptedSam:
    """Med-SA with random adapters, so that depth makes a difference."""
    torch.manual_seed(0)
    model = adapt(build_sam("lite_medsam", image_size=64), "med_sa").eval()
    for _, _, parameter in model.trained_parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def volume(slices: int) -> Volume:
    voxels = np.random.default_rng(0).normal(60, 5, (24, 20, slices))
    voxels[6:18, 5:15] += 100
    return Volume(np.asfortranarray(voxels.astype(np.int16)), np.eye(4), "MR")


def request(segmenter: Segmenter, image: Volume) -> Request:
    return Request(segmenter, image, CLICK, "0,255", None, segmenter.depth)


@pytest.mark.parametrize("slices", [3, 5])
def test_a_volume_of_one_slab_is_what_the_encoder_says_of_it(deep, slices) -> None:
    asked, image = request(Segmenter(deep), volume(slices)), volume(slices)
    seen = [asked.encoded(k)[1].embedding for k in range(slices)]
    alone = Request(Segmenter(deep), image, CLICK, "0,255", None)
    assert len(asked.segmenter.cache) == 1
    assert any(not torch.allclose(seen[k], alone.encoded(k)[1].embedding, atol=1e-3) for k in range(slices))


def test_slices_share_slabs_and_overlaps_are_blended(deep) -> None:
    segmenter, image = Segmenter(deep), volume(8)
    asked = request(segmenter, image)
    seen = [asked.encoded(k)[1].embedding for k in range(8)]
    assert len(segmenter.cache) == len(slabs_of(8, 5)) == 2
    first, second = (
        Request(segmenter, Volume(image.voxels[:, :, at : at + 5], np.eye(4), "MR"), CLICK, "0,255", None, 5)
        for at in (0, 3)
    )
    assert torch.allclose(seen[0], first.encoded(0)[1].embedding)
    assert torch.allclose(seen[7], second.encoded(4)[1].embedding)
    blended = (2 * first.encoded(3)[1].embedding + second.encoded(0)[1].embedding) / 3
    assert torch.allclose(seen[3], blended, atol=1e-5)


def test_a_volume_is_followed_through_slabs_and_a_single_slice_is_a_slab_of_one(deep) -> None:
    segmenter, image = Segmenter(deep), volume(7)
    segmenter.segment_slice(image, CLICK, 2, window="0,255")
    assert len(segmenter.cache) == 1
    assert segmenter.segment_volume(image, CLICK, window="0,255").mask[12, 10, 2]
    assert len(segmenter.cache) <= 1 + len(slabs_of(7, 5))


def test_a_method_that_has_learnt_nothing_gives_the_volume_of_its_base() -> None:
    torch.manual_seed(0)
    sam = build_sam("lite_medsam", image_size=64)
    base, fresh = Segmenter(sam), Segmenter(adapt(sam, "med_sa").eval())
    masks = [one.segment_volume(volume(6), CLICK, window="0,255").mask for one in (base, fresh)]
    assert (masks[0] == masks[1]).mean() > 0.999
