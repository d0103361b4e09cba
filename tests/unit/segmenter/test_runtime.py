"""The runtime on a small model with random weights: whose clicks count, what is kept, what is refused."""

import threading

import numpy as np
import pytest
import torch

from medsa.data.volume import Volume
from medsa.errors import BadInputError, CancelledError
from medsa.prompts.prompt import Prompt
from medsa.sam import build_sam
from medsa.segmenter import Result, Segmenter, Session, Sessions


@pytest.fixture(scope="module")
def volume() -> Volume:
    voxels = np.random.default_rng(0).normal(100, 5, (40, 30, 5))
    voxels[10:25, 8:22, 1:4] += 60
    return Volume(np.asfortranarray(voxels.astype(np.int16)), np.eye(4), "MR")


CLICKS = [
    Prompt(foreground=[[17, 15, 2]]),
    Prompt(foreground=[[17, 15, 2]], background=[[30, 25, 2]]),
    Prompt(foreground=[[17, 15, 2], [12, 20, 2]], background=[[30, 25, 2]]),
]
OTHERS = [
    Prompt(foreground=[[5, 5, 2]]),
    Prompt(foreground=[[5, 5, 2]], background=[[17, 15, 2]]),
    Prompt(foreground=[[5, 5, 2]], background=[[17, 15, 2], [12, 20, 2]]),
]


def click(
    segmenter: Segmenter, volume: Volume, prompts: list[Prompt], session: Session | None
) -> list[Result]:
    return [segmenter.segment_slice(volume, prompt, 2, session=session) for prompt in prompts]


def test_the_mask_lies_on_the_volumes_grid_and_only_on_its_slice(segmenter, volume) -> None:
    result = segmenter.segment_slice(volume, CLICKS[0], 2)
    assert result.mask.shape == volume.shape
    assert result.mask.dtype == np.uint8
    assert result.mask.flags.f_contiguous
    assert set(np.unique(result.mask)) <= {0, 1}
    assert not result.mask[:, :, [0, 1, 3, 4]].any()
    assert set(result.timings) == {"encode", "decode", "total"}
    assert "mr" in result.options["window"]


def test_every_click_is_obeyed_on_the_volumes_own_grid(segmenter, volume) -> None:
    for prompt, result in zip(CLICKS, click(segmenter, volume, CLICKS, Session()), strict=True):
        for i, j, k in prompt.foreground.astype(int):
            assert result.mask[i, j, k]
        for i, j, k in prompt.background.astype(int):
            assert not result.mask[i, j, k]


def test_two_users_who_click_in_turns_get_what_each_gets_alone(segmenter, volume) -> None:
    alone = [click(segmenter, volume, prompts, Session()) for prompts in (CLICKS, OTHERS)]
    sessions = Sessions()
    together: list[list[Result]] = [[], []]
    for pair in zip(CLICKS, OTHERS, strict=True):
        for user, prompt in enumerate(pair):
            session = sessions.open(f"user {user}", "image")
            together[user].append(segmenter.segment_slice(volume, prompt, 2, session=session))
    for mine, mixed in zip(alone, together, strict=True):
        assert all((a.mask == b.mask).all() for a, b in zip(mine, mixed, strict=True))


def test_users_who_click_at_the_same_time_get_what_each_gets_alone(segmenter, volume) -> None:
    alone = [click(segmenter, volume, prompts, Session()) for prompts in (CLICKS, OTHERS)]
    segmenter.cache.clear()
    answers: dict[int, list[Result]] = {}

    def user(number: int) -> None:
        answers[number] = click(segmenter, volume, (CLICKS, OTHERS)[number % 2], Session())

    threads = [threading.Thread(target=user, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert all((a.mask == b.mask).all() for a, b in zip(alone[number % 2], answers[number], strict=True))
    assert len(segmenter.cache) == 1


def test_the_same_request_gives_the_same_answer_without_computing_it_again(segmenter, volume) -> None:
    session = Session()
    first, again = click(segmenter, volume, [CLICKS[2], CLICKS[2]], session)
    assert (first.mask == again.mask).all()
    assert again.timings["decode"] == 0
    assert (first.mask == segmenter.segment_slice(volume, CLICKS[2], 2).mask).all()


def test_fewer_clicks_than_before_give_the_earlier_mask_back(segmenter, volume) -> None:
    session = Session()
    answers = click(segmenter, volume, CLICKS, session)
    for prompt, answer in reversed(list(zip(CLICKS, answers, strict=True))):
        undone = segmenter.segment_slice(volume, prompt, 2, session=session)
        assert (undone.mask == answer.mask).all()
        assert undone.timings["decode"] == 0


def test_a_second_click_on_an_encoded_slice_does_not_encode(segmenter, volume) -> None:
    segmenter.cache.clear()
    first, second = click(segmenter, volume, CLICKS[:2], None)
    assert (first.cached, second.cached) == (False, True)
    assert second.timings["encode"] == 0


def test_another_window_is_another_embedding(segmenter, volume) -> None:
    segmenter.cache.clear()
    for window in ("mr", "90,180", "mr"):
        segmenter.segment_slice(volume, CLICKS[0], 2, window=window)
    assert len(segmenter.cache) == 2


def test_equal_pixels_share_an_embedding_and_changed_ones_do_not(segmenter, volume) -> None:
    segmenter.cache.clear()
    copy = Volume(volume.voxels.copy(order="F"), np.eye(4), "MR", uid="other")
    other = Volume(volume.voxels.copy(order="F"), np.eye(4), "MR")
    other.voxels[0, 0, 2] += 1
    for image in (volume, copy, other):
        segmenter.segment_slice(image, CLICKS[0], 2, window="90,180")
    assert len(segmenter.cache) == 2


def test_a_box_that_sticks_out_is_clipped(segmenter, volume) -> None:
    inside = segmenter.segment_slice(volume, Prompt(box=[[0, 0, 2], [20, 20, 2]]), 2)
    outside = segmenter.segment_slice(volume, Prompt(box=[[-40, -9, 2], [20, 20, 2]]), 2)
    assert (inside.mask == outside.mask).all()


@pytest.mark.parametrize(
    ("prompt", "k", "message"),
    [
        (Prompt(), 2, "nothing says where the object is"),
        (Prompt(background=[[1, 1, 2]]), 2, "nothing says where the object is"),
        (Prompt(foreground=[[17, 15, 1]]), 2, "slice 2"),
        (Prompt(foreground=[[17, 15, 2]]), 5, "slice 5 lies outside"),
        (Prompt(foreground=[[17, 15, 2]]), -1, "lies outside"),
        (Prompt(foreground=[[40, 15, 2]]), 2, "lies outside the image"),
        (Prompt(box=[[50, 50, 2], [60, 60, 2]]), 2, "lies outside the image"),
    ],
)
def test_a_prompt_that_says_nothing_or_lies_outside_is_refused(segmenter, volume, prompt, k, message) -> None:
    with pytest.raises(BadInputError, match=message):
        segmenter.segment_slice(volume, prompt, k)


def test_a_volume_without_a_place_to_start_is_refused(segmenter, volume) -> None:
    with pytest.raises(BadInputError, match="nothing says where the object is"):
        segmenter.segment_volume(volume, Prompt(background=[[1, 1, 2]]))


def test_a_box_in_three_dimensions_bounds_the_object(segmenter, volume) -> None:
    result = segmenter.segment_volume(volume, Prompt(box=[[8, 6, 1], [26, 24, 3]]))
    assert set(result.slices) <= {1, 2, 3}
    assert 2 in result.slices
    assert set(result.scores) == set(result.slices)


def test_a_volume_holds_the_slice_its_prompt_gives_alone(segmenter, volume) -> None:
    alone = segmenter.segment_slice(volume, CLICKS[0], 2)
    whole = segmenter.segment_volume(volume, CLICKS[0])
    assert (whole.mask[:, :, 2] == alone.mask[:, :, 2]).all()


def test_a_cancelled_volume_ends_before_its_next_slice(segmenter, volume) -> None:
    with pytest.raises(CancelledError):
        segmenter.segment_volume(volume, CLICKS[0], cancelled=lambda: True)


def test_colour_pictures_are_segmented_too(segmenter) -> None:
    voxels = np.random.default_rng(0).integers(0, 255, (40, 30, 1, 3)).astype(np.uint8)
    picture = Volume(np.asfortranarray(voxels), np.eye(4))
    assert segmenter.segment_slice(picture, Prompt(foreground=[[17, 15, 0]]), 0).mask[17, 15, 0]


def test_a_backbone_that_was_trained_with_points_takes_them_and_obeys_them(volume) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(build_sam("vit_t", image_size=64))
    answers = click(segmenter, volume, CLICKS, Session())
    assert all(answer.mask[17, 15, 2] for answer in answers)
    assert not answers[1].mask[30, 25, 2]
