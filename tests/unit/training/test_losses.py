"""The price of masks: the best of several learns, padding is free, IoU is what it says."""

import pytest
import torch

from medsa.training.losses import LossWeights, cost, dice, iou

WEIGHTS = LossWeights()


def square(size: int = 12, side: int = 32) -> torch.Tensor:
    truth = torch.zeros(1, side, side)
    truth[:, 8 : 8 + size, 8 : 8 + size] = 1
    return truth


def logits(truth: torch.Tensor, sharp: float = 8.0) -> torch.Tensor:
    return (truth * 2 - 1)[:, None] * sharp


def test_a_right_mask_costs_next_to_nothing_and_a_wrong_one_much() -> None:
    truth, valid = square(), torch.ones(1, 32, 32, dtype=torch.bool)
    right = cost(logits(truth), torch.ones(1, 1), truth, valid, WEIGHTS)
    wrong = cost(logits(1 - truth), torch.ones(1, 1), truth, valid, WEIGHTS)
    assert right.loss < 0.01
    assert wrong.loss > 2


def test_of_several_masks_the_best_one_is_taught_most() -> None:
    truth, valid = square(), torch.ones(1, 32, 32, dtype=torch.bool)
    three = torch.cat([logits(truth, 1.0), torch.zeros(1, 1, 32, 32), logits(1 - truth, 1.0)], dim=1)
    three.requires_grad_(True)
    cost(three, torch.zeros(1, 3), truth, valid, LossWeights(others=0.05)).loss.backward()
    steps = three.grad.abs().sum(dim=(0, 2, 3))
    assert steps[0] > 5 * steps[1:].max()
    assert steps.min() > 0


def test_padding_costs_nothing_and_teaches_nothing() -> None:
    truth, valid = square(), torch.ones(1, 32, 32, dtype=torch.bool)
    valid[:, 24:] = False
    spilled = logits(truth).clone()
    spilled[:, :, 24:] = 9.0
    spilled.requires_grad_(True)
    found = cost(spilled, torch.ones(1, 1), truth, valid, WEIGHTS).loss
    found.backward()
    assert found.item() == pytest.approx(
        cost(logits(truth), torch.ones(1, 1), truth, valid, WEIGHTS).loss.item(), abs=1e-5
    )
    assert not spilled.grad[:, :, 24:].any()


def test_the_iou_head_is_taught_what_the_masks_reach() -> None:
    truth, valid = square(), torch.ones(1, 32, 32, dtype=torch.bool)
    half = truth.clone()
    half[:, 14:] = 0
    reached = iou(half[:, None] > 0, truth[:, None] > 0)
    assert reached.item() == pytest.approx(0.5)
    told = [cost(logits(half), torch.tensor([[score]]), truth, valid, WEIGHTS).loss for score in (0.5, 0.9)]
    assert (told[1] - told[0]).item() == pytest.approx(0.16, abs=1e-4)


def test_dice_of_nothing_and_nothing_is_one() -> None:
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert dice(nothing, nothing).tolist() == [1, 1]
    assert dice(nothing, ~nothing).tolist() == [0, 0]
