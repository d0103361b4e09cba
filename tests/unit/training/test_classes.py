"""Training without prompts: a version that knows its labels, learns, goes on after a stop, and is asked."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.training.test_train import CASES, PLAIN

from medsa.adapters.state import read_card
from medsa.errors import CancelledError, ConfigurationError
from medsa.segmenter.classes import PromptlessSam, classify_volume
from medsa.training.classes import promptless, slabs_of_study, train_classes
from medsa.training.engine import grid_of
from medsa.training.length import Length
from medsa.training.train import Request

__all__ = ["one_thread"]


def request(**changed: object) -> Request:
    return Request(**({"method": "ma_sam", "length": Length(steps=3), "settings": PLAIN} | changed))


@pytest.mark.parametrize("method", ["ma_sam", "ma_sam_fusion"])
def test_a_promptless_version_holds_its_labels_in_order_and_is_asked_again(tmp_path: Path, method) -> None:
    sam = small_sam("tiny_vit")
    done = train_classes(sam, CASES[:2], CASES[3:], tmp_path, request(method=method))
    card = read_card(done.candidate)
    assert (done.steps, card.labels, card.trained_prompts) == (3, ("near", "far"), ())
    assert card.method.head.classes == 3
    assert card.studies == {"training": ("0", "1"), "validation": ("3",)}
    assert set(card.metrics["after"]) == {"no prompt", "near", "far"}
    volume, truth, _ = CASES[3].read()
    found = classify_volume(promptless(sam, done.candidate), volume)
    again = classify_volume(promptless(sam, done.candidate), volume)
    assert found.mask.shape == truth.shape
    assert found.mask.max() <= 2
    assert set(found.sure) == {"near", "far"}
    assert (found.mask == again.mask).all()


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    settings = PLAIN.model_copy(update={"adapter_rate": 1e-2, "ema": 0.5})
    wanted = request(length=Length(steps=60), settings=settings, measured=1)
    sam = small_sam("tiny_vit")
    done = train_classes(sam, CASES[:3], CASES[:1], tmp_path, wanted)
    assert done.metrics["after"]["no prompt"] > 0.6


def test_some_slices_are_answered_as_in_the_whole_volume(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    done = train_classes(sam, CASES[:1], [], tmp_path, request(length=Length(steps=1)))
    known, volume = promptless(sam, done.candidate), CASES[3].read()[0]
    whole, one = classify_volume(known, volume).mask, classify_volume(known, volume, [1]).mask
    assert (whole[:, :, 1] == one[:, :, 1]).all()
    assert not one[:, :, [0, 2]].any()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_stopped_run_ends_in_the_weights_of_one_that_was_not(tmp_path: Path, accumulate: int) -> None:
    settings = PLAIN.model_copy(update={"accumulate": accumulate})
    wanted = request(length=Length(steps=4), settings=settings, measured=0)
    whole = train_classes(small_sam("tiny_vit"), CASES[:2], [], tmp_path / "whole", wanted)
    steps = iter(range(100))
    with pytest.raises(CancelledError):
        train_classes(
            small_sam("tiny_vit"), CASES[:2], [], tmp_path / "halved", wanted, stop=lambda: next(steps) == 2
        )
    again = train_classes(small_sam("tiny_vit"), CASES[:2], [], tmp_path / "halved", wanted, resume=True)
    files = [(done.candidate / "adapter.safetensors").read_bytes() for done in (whole, again)]
    assert files[0] == files[1]


def test_it_goes_on_from_a_version_of_the_same_labels_alone(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    first = train_classes(sam, CASES[:2], [], tmp_path / "first", request()).candidate
    second = train_classes(sam, CASES[:2], [], tmp_path / "second", request(start=first)).candidate
    assert read_card(second).parent == first.name
    with pytest.raises(ConfigurationError, match="segments near, far"):
        train_classes(sam, CASES[:2], [], tmp_path / "third", request(start=first, labels={2: "far"}))


def test_slabs_show_all_labels_and_slices_without_any(tmp_path: Path) -> None:
    volume, mask, names = CASES[0].read()
    mask = mask.copy()
    mask[:, :, 0] = 0
    grid = grid_of(small_sam("tiny_vit"), depth=3)
    slabs = slabs_of_study(volume, mask, names, grid, "s", most=2)
    assert len(slabs) == 3
    middle = slabs[0]
    assert {(item.at, item.label) for item in middle} == {(1, "near"), (1, "far"), (2, "near"), (2, "far")}
    assert all(item.picture is middle[0].picture for item in middle)
    assert torch.equal(
        torch.from_numpy(np.unique([item.mask.any() for item in middle])), torch.tensor([True])
    )


@pytest.mark.parametrize(
    ("kind", "method", "begins"),
    [("tiny_vit", "ma_sam", 32), ("tiny_vit", "unet", 64), ("vit", "ma_sam", 64)],
)
def test_the_first_part_is_learnt_at_half_the_side_where_that_means_the_same(
    tmp_path, monkeypatch, kind, method, begins
) -> None:
    seen = []
    monkeypatch.setattr(
        PromptlessSam,
        "classify",
        lambda self, images: seen.append(images.shape[-1]) or self.model.segment(images),
    )
    settings = PLAIN.model_copy(update={"coarse": 0.5})
    wanted = request(method=method, length=Length(steps=4), settings=settings, measured=0)
    train_classes(small_sam(kind, image_size=64), CASES[:2], [], tmp_path, wanted)
    half = len(seen) // 2
    assert set(seen[:half]) == {begins}
    assert set(seen[half:]) == {64}
