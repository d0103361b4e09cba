"""What a method is, as data: which adapters stand where and what else trains (configs/methods)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medsa.adapters.hyper_prompt import Conditioning
from medsa.config import config_names, load_config


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LowRank(_Data):
    """Increments of query and value: FacT's tensor train or LoRA's pairs; `scale` is s."""

    kind: Literal["fact", "lora"]
    rank: int = Field(32, gt=0)
    scale: float = 1.0


class EncoderAdapters(_Data):
    """Adapters of the image encoder's transformer blocks; all off is the frozen encoder.

    `attention` after the attention, `mlp` beside the MLP (scaled by `scale`), `depth` SD-Trans's third one on
    the depth branch, `path` the global path around the block, `volumetric` MA-SAM's two 3D adapters, or
    only the one before or after the attention. Their width is the block's width times `ratio`. `last` places
    them in the last so many blocks only.
    """

    attention: bool = False
    mlp: bool = False
    depth: bool = False
    path: bool = False
    volumetric: bool | Literal["before", "after"] = False
    low_rank: LowRank | None = None
    ratio: float = Field(1 / 16, gt=0, le=1)
    scale: float = Field(0.1, gt=0)
    last: int | None = Field(None, gt=0)


class DecoderAdapters(_Data):
    """Three adapters in the mask decoder's two-way blocks; the first hears the prompt as `conditioning` says.

    `blocks` lists the two-way blocks that have them (both, or the first only for MSA).
    """

    blocks: tuple[int, ...] = (0, 1)
    conditioning: Conditioning = "hyper"
    ratio: float = Field(1 / 16, gt=0, le=1)
    scale: float = Field(0.1, gt=0)


class MaskHead(_Data):
    """A multi-class head: MA-SAM's two ways to the input's resolution, a mask token a class each; or a U-Net.

    The U-Net sees the input alone: neither encoder nor decoder has a part in it.
    """

    kind: Literal["progressive", "fusion", "unet"] = "progressive"
    classes: int = Field(gt=0, description="a study's label set decides in practice")


class Refinement(_Data):
    """A small U-Net after the mask decoder, on the slice's pixels.

    Its finest level is the logits' grid, or every `stride`th cell of it, with `width` channels; each of the
    other `levels` has twice as many, at half the side.
    """

    width: int = Field(32, gt=0, multiple_of=8)
    levels: int = Field(3, gt=0, le=5)
    stride: int = Field(1, gt=0, le=4)


class Method(_Data):
    """One way to adapt a frozen SAM. `trains` names parts of the base that a copy of trains fully.

    `carries` names parts of which a copy stays as another adapter has taught it (see `adapt`). `names` are
    the labels that can be told to it with a prompt (see `AdaptedSam.about`): in a file none yet, since those
    of the training data are learnt; None for a method that cannot be told.
    """

    name: str
    title: str
    paper: str
    encoder: EncoderAdapters = EncoderAdapters()
    decoder: DecoderAdapters | None = None
    head: MaskHead | None = None
    refiner: Refinement | None = None
    names: tuple[str, ...] | None = None
    trains: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    prompts: bool = True
    depth: int = Field(1, gt=0, description="slices of a slab")

    @property
    def only_parts(self) -> bool:
        """Whether all that it changes are parts of the base: others can then be placed on top of it."""
        return self.encoder == EncoderAdapters() and self.decoder is None and self.head is None

    @model_validator(mode="after")
    def _sensible(self) -> Method:
        if self.depth == 1 and (self.encoder.depth or self.encoder.volumetric):
            raise ValueError("adapters across slices need a slab: depth > 1")
        if self.head is None and not self.prompts:
            raise ValueError("a method without prompts needs a multi-class head")
        return self


def read_method(name: str) -> Method:
    """The method of configs/methods/<name>.yaml; raises `ConfigurationError`."""
    return load_config("methods", name, Method)


def read_methods() -> list[Method]:
    """All methods, by name."""
    return [read_method(name) for name in config_names("methods")]
