"""How a run trains, as data (configs/training)."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from medsa.config import load_config
from medsa.prompts.mixture import PromptMixture
from medsa.training.augment import Augmentation
from medsa.training.losses import LossWeights


class Settings(BaseModel):
    """Everything a run may be told, but its data, method, seed and length.

    A step goes through `batch` items, each with its own prompts; where the encoder learns, items of one
    picture share a step, so that it is encoded once. The optimizer moves every `accumulate` steps. The rate
    rises over the `warm_up` part of the run and then falls as a cosine; `adapter_rate` is that of what starts
    from nothing, `rate` that of copies of the base's parts. What is kept and served are running means of the
    weights (`ema`). After an epoch, at most `epoch_items` items, so many held-out ones are measured as
    `validation_items` says; `patience` epochs without a better one end the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    prompts: PromptMixture = PromptMixture()
    loss: LossWeights = LossWeights()
    augmentation: Augmentation = Augmentation()
    batch: int = Field(4, gt=0)
    accumulate: int = Field(1, gt=0)
    rate: float = Field(1e-4, gt=0)
    adapter_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warm_up: float = Field(0.03, ge=0, lt=1)
    clip: float = Field(1.0, gt=0, description="the most that the gradient's norm may be")
    ema: float = Field(0.998, ge=0, lt=1)
    patience: int = Field(12, gt=0)
    epoch_items: int = Field(400, gt=0)
    validation_items: int = Field(24, gt=0)
    slices: int = Field(16, gt=0, description="slices of each label of a study, at most")
    pictures: int = Field(800, gt=0, description="slices whose embeddings are kept on disk, at most")
    empty: float = Field(
        0.03, ge=0, lt=1, description="slices without the object, as a part of the other pictures"
    )
    checkpoint_steps: int = Field(100, gt=0)
    coarse: float = Field(
        0.0, ge=0, le=1, description="the first part of a run, on embeddings or pictures of half the side"
    )
    decoder_first: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="the part of an encoder method's length in which the decoder alone learns",
    )
    neighbours: float = Field(
        0.5,
        ge=0,
        le=1,
        description="steps of a method for slabs in which it sees the slab, not single slices",
    )
    run: int = Field(6, gt=0, description="neighbouring slices that are taken together from a volume")
    follow: float = Field(
        0.0, ge=0, le=1, description="steps on volumes in which an object is followed through its slices"
    )


def read_settings(name: str) -> Settings:
    """The settings of configs/training/<name>.yaml; raises `ConfigurationError`."""
    return load_config("training", name, Settings)


def rate_at(progress: float, warm_up: float) -> float:
    """Which part of its learning rate a run uses when this part (0..1) of it is done."""
    if progress < warm_up:
        return progress / warm_up
    done = (progress - warm_up) / (1 - warm_up)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
