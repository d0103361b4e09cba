"""What the simulated annotator does in training, as data: how often it clicks, draws boxes, and corrects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medsa.prompts.annotator import Clicks, first_clicks, jittered_boxes, next_clicks, tight_boxes

Start = Literal["click", "box", "click and box"]


class PromptMixture(BaseModel):
    """Shares of prompts (METHODS.md, section 8); `click`, `box` and `click_and_box` are relative weights.

    `random_first` and `random_further` are the shares of clicks anywhere in their region instead of at its
    deepest point, `tight` that of boxes that fit instead of jittered ones. After the first prompt come up to
    `rounds` corrective clicks, each number of them as likely; each sees the mask before it in `mask` of the
    cases. In `named` of the cases the label is told, to models that can be told.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    click: float = Field(0.65, ge=0)
    box: float = Field(0.25, ge=0)
    click_and_box: float = Field(0.1, ge=0)
    random_first: float = Field(0.5, ge=0, le=1)
    random_further: float = Field(0.3, ge=0, le=1)
    tight: float = Field(0.4, ge=0, le=1)
    jitter: float = Field(0.1, ge=0, description="deviation of a jittered side, as a part of the object")
    rounds: int = Field(3, ge=0)
    mask: float = Field(0.9, ge=0, le=1)
    named: float = Field(0.7, ge=0, le=1)

    @model_validator(mode="after")
    def _something(self) -> PromptMixture:
        if self.click + self.box + self.click_and_box == 0:
            raise ValueError("one of click, box and click_and_box must be above 0")
        return self


@dataclass(frozen=True)
class Interaction:
    """How an annotator goes about one object: `start`, and how many corrective clicks may follow.

    With `named` the label is told, to models that can be told.
    """

    start: Start
    rounds: int
    named: bool = True

    @property
    def clicks(self) -> bool:
        """Whether it starts with a click."""
        return self.start != "box"

    @property
    def boxes(self) -> bool:
        """Whether it starts with a box."""
        return self.start != "click"


def draw(mixture: PromptMixture, rng: np.random.Generator) -> Interaction:
    """An interaction by the shares of `mixture`."""
    starts: tuple[Start, ...] = ("click", "box", "click and box")
    weights = np.array([mixture.click, mixture.box, mixture.click_and_box])
    start = starts[rng.choice(len(starts), p=weights / weights.sum())]
    rounds = int(rng.integers(mixture.rounds + 1))
    return Interaction(start, rounds, bool(rng.random() < mixture.named))


def mixed_first_clicks(truth: NDArray[np.bool_], mixture: PromptMixture, rng: np.random.Generator) -> Clicks:
    """A first click on each of masks (B, H, W), at the deepest point or anywhere by the mixture's share."""
    return _either(
        rng.random(len(truth)) < mixture.random_first, first_clicks(truth, rng), first_clicks(truth)
    )


def mixed_next_clicks(
    truth: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    mixture: PromptMixture,
    rng: np.random.Generator,
) -> Clicks:
    """A corrective click on each of predictions (B, H, W), deepest or anywhere by the mixture's share."""
    random = rng.random(len(truth)) < mixture.random_further
    return _either(random, next_clicks(truth, predicted, rng), next_clicks(truth, predicted))


def mixed_boxes(
    truth: NDArray[np.bool_], mixture: PromptMixture, rng: np.random.Generator
) -> NDArray[np.float64]:
    """(B, 2, 2): a box around each of masks (B, H, W), tight or jittered by the mixture's share."""
    tight = rng.random(len(truth)) < mixture.tight
    return np.where(tight[:, None, None], tight_boxes(truth), jittered_boxes(truth, rng, mixture.jitter))


def _either(first: NDArray[np.bool_], one: Clicks, other: Clicks) -> Clicks:
    index = np.where(first[:, None], one.index, other.index)
    return Clicks(index, other.positive, other.found)
