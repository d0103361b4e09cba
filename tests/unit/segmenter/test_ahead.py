"""Work ahead: the slices around a click are there before they are asked for, and any request comes first."""

import threading
import time

import numpy as np
import pytest
import torch

from medsa.data.volume import Volume
from medsa.prompts.prompt import Prompt
from medsa.sam import build_sam
from medsa.segmenter import Segmenter
from medsa.segmenter.ahead import SHARE, Ahead
from medsa.segmenter.turns import Turns

LONG = 120.0


@pytest.fixture(scope="module")
def volume() -> Volume:
    voxels = np.random.default_rng(0).normal(60, 20, (32, 28, 9))
    return Volume(np.asfortranarray(voxels.astype(np.int16)), np.eye(4), "MR")


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(build_sam("lite_medsam", image_size=64))


def click(segmenter: Segmenter, volume: Volume, k: int):
    return segmenter.segment_slice(volume, Prompt(foreground=[[16, 14, k]]), k, window="0,255")


def test_the_slices_around_a_click_need_no_encoding_any_more(segmenter, volume) -> None:
    ahead = Ahead(3, quiet=0)
    alone = click(Segmenter(segmenter.sam), volume, 5).mask
    assert not click(segmenter, volume, 4).cached
    ahead.around(segmenter, volume, "0,255", 4)
    assert ahead.wait_until_done(LONG)
    near = click(segmenter, volume, 5)
    assert near.cached
    assert (near.mask == alone).all()
    assert click(segmenter, volume, 3).cached
    ahead.close()


def test_no_more_of_the_cache_is_taken_than_its_share(segmenter, volume) -> None:
    small = Segmenter(segmenter.sam)
    small.cache.max_bytes = int(2 * small.bytes_of_a_slice / SHARE) + 1
    ahead = Ahead(3, quiet=0)
    ahead.around(small, volume, "0,255", 4)
    assert ahead.wait_until_done(LONG)
    assert len(small.cache) == 2
    ahead.close()


def test_closing_forgets_what_is_still_wished_for(segmenter, volume) -> None:
    ahead = Ahead(3, quiet=LONG)
    click(segmenter, volume, 4)
    ahead.around(segmenter, volume, "0,255", 4)
    ahead.close()
    assert ahead.wait_until_done(0)
    assert len(segmenter.cache) == 1
    ahead.around(segmenter, volume, "0,255", 4)
    assert len(segmenter.cache) == 1


def test_who_works_ahead_waits_until_nobody_else_does() -> None:
    turns, order, threads = Turns(), [], []

    def take(name: str, *, ahead: bool = False) -> None:
        with turns.turn(ahead=ahead):
            order.append(name)

    with turns.turn():
        for name, behind in (("ahead", True), ("first", False), ("second", False)):
            threads.append(threading.Thread(target=take, args=(name,), kwargs={"ahead": behind}))
            threads[-1].start()
            while not behind and turns.waiting < len(threads) - 1:
                time.sleep(0.001)
    for thread in threads:
        thread.join(LONG)
    assert order == ["first", "second", "ahead"]


def test_the_middle_of_a_study_that_comes_next_is_encoded_after_what_is_near_a_click(
    segmenter, volume
) -> None:
    ahead = Ahead(1, quiet=LONG)
    ahead.study(segmenter, volume, "0,255")
    ahead.around(segmenter, volume, "0,255", 7)
    wished = [wish.k for wish in ahead._wishes]
    assert wished[::-1] == [8, 6, 4, 3, 5, 2, 6, 1, 7, 0, 8]
    ahead.quiet = 0
    assert ahead.wait_until_done(LONG)
    assert all(click(segmenter, volume, k).cached for k in range(9))
    ahead.close()
    small = Segmenter(segmenter.sam)
    small.cache.max_bytes = int(2 * small.bytes_of_a_slice / SHARE) + 1
    ahead = Ahead(1, quiet=0)
    ahead.study(small, volume, "0,255")
    assert ahead.wait_until_done(LONG)
    assert len(small.cache) == 2
    ahead.close()
