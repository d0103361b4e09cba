"""What a mask and its predicted IoU cost: MONAI's Dice, cross-entropy, the IoU head's squared error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.losses import DiceLoss
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F


class LossWeights(BaseModel):
    """Weights of Dice, cross-entropy, the IoU head, and of the masks that lose against the best one.

    Of several masks for one ambiguous click only the best is taught to be right, so that they come to differ;
    `others` keeps those that never win within reach.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dice: float = Field(1.0, ge=0)
    cross_entropy: float = Field(1.0, ge=0)
    iou: float = Field(1.0, ge=0)
    others: float = Field(0.05, ge=0, le=1)


@dataclass(frozen=True)
class Cost:
    """`loss` to go backward from, mean over the batch; `mask` (N,) each one's best mask loss, detached."""

    loss: Tensor
    mask: Tensor


def cost(logits: Tensor, scores: Tensor, truth: Tensor, valid: Tensor, weights: LossWeights) -> Cost:
    """Cost of logits (N, M, h, w) and predicted IoU (N, M) against truth (N, h, w), 0 or 1.

    `valid` (N, h, w) bool: what is padding counts for nothing.
    """
    count, masks = logits.shape[:2]
    logits = logits.float().masked_fill(~valid[:, None], -20.0)
    target = truth.float()[:, None].expand_as(logits)
    flat, wanted = logits.flatten(0, 1)[:, None], target.flatten(0, 1)[:, None]
    overlap = DiceLoss(sigmoid=True, reduction="none")(flat, wanted).flatten(1).mean(dim=1)
    entropy = F.binary_cross_entropy_with_logits(flat, wanted, reduction="none").mean(dim=(1, 2, 3))
    each = (weights.dice * overlap + weights.cross_entropy * entropy).view(count, masks)
    best = each.min(dim=1).values
    loss = best if masks == 1 else (1 - weights.others) * best + weights.others * each.mean(dim=1)
    error = (scores.float() - iou(logits.detach() > 0, target > 0)).square().mean(dim=1)
    return Cost((loss + weights.iou * error).mean(), best.detach())


def iou(masks: Tensor, truth: Tensor) -> Tensor:
    """(N, M) intersection over union of bool masks (N, M, h, w); 1 where both are empty."""
    shared = (masks & truth).sum(dim=(2, 3)).float()
    either = (masks | truth).sum(dim=(2, 3)).float()
    return torch.where(either > 0, shared / either.clamp(min=1), torch.ones_like(shared))


def dice(masks: Tensor, truth: Tensor) -> Tensor:
    """(N,) Dice of bool masks (N, h, w); 1 where both are empty."""
    overlap = iou(masks[:, None], truth[:, None])[:, 0]
    return 2 * overlap / (1 + overlap)
