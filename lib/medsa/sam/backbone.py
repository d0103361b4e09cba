"""What a backbone is, as data (configs/backbones): architecture, input, licence, origin of its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medsa.config import config_names, load_config
from medsa.errors import ConfigurationError

Triple = tuple[float, float, float]
PromptKind = Literal["point", "box", "mask", "neighbour"]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ViTArchitecture(_Data):
    """Segment Anything's image encoder: a ViT with windowed and global attention, 16 x 16 pixels a token."""

    kind: Literal["vit"]
    width: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    global_blocks: tuple[int, ...]
    window: int = 14

    @property
    def stride(self) -> int:
        """Pixels along one side of an embedding cell."""
        return 16


class TinyViTArchitecture(_Data):
    """TinyViT: one stage of convolutions, three of windowed attention; two halve the grid."""

    kind: Literal["tiny_vit"]
    patch: Literal[1, 4]
    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]

    @property
    def stride(self) -> int:
        """Pixels along one side of an embedding cell."""
        return 4 * self.patch


class DecoderArchitecture(_Data):
    """Prompt encoder and two-way mask decoder; the defaults are those of every published SAM."""

    width: int = 256
    depth: int = 2
    heads: int = 8
    mlp: int = 2048


class Weights(_Data):
    """Where the tensors come from.

    `package` is `module/file` inside an installed package, `url` a download. Without `sha256` the user gives
    the file once and its hash is recorded. `ignored` are prefixes of tensors without use here.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    package: str | None = None
    url: str | None = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    bytes: int | None = Field(None, gt=0)
    ignored: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _pinned(self) -> Weights:
        if (self.url or self.package) and not self.sha256:
            raise ValueError("weights from a url or a package need their sha256")
        return self


class Backbone(_Data):
    """One frozen foundation model.

    Input: the image's longest side is scaled to `image_size` and padded at the bottom and right with zeros
    (`resize: longest_side`), or both sides are scaled (`stretch`). Pixels 0..255 are normalised with
    `pixel_mean` and `pixel_std`; without them each image from its own minimum and maximum to [0, 1].
    Normalisation comes before padding.
    """

    name: str
    title: str
    architecture: Annotated[ViTArchitecture | TinyViTArchitecture, Field(discriminator="kind")]
    decoder: DecoderArchitecture = DecoderArchitecture()
    image_size: int = Field(gt=0, multiple_of=16)
    pixel_mean: Triple | None = None
    pixel_std: Triple | None = None
    resize: Literal["longest_side", "stretch"] = "longest_side"
    trained_prompts: tuple[PromptKind, ...]
    parameters: int = Field(gt=0)
    licence: str
    source: str
    weights: Weights

    @model_validator(mode="after")
    def _statistics(self) -> Backbone:
        if (self.pixel_mean is None) != (self.pixel_std is None):
            raise ValueError("pixel_mean and pixel_std belong together")
        return self

    def embedding_size(self, image_size: int | None = None) -> int:
        """Side of the embedding for `image_size` pixels; `ConfigurationError` unless a multiple of 16."""
        size = self.image_size if image_size is None else image_size
        if size <= 0 or size % 16:
            raise ConfigurationError(f"the input size must be a positive multiple of 16, not {size}")
        return size // self.architecture.stride


def read_backbone(name: str) -> Backbone:
    """The backbone of configs/backbones/<name>.yaml; raises `ConfigurationError`."""
    return load_config("backbones", name, Backbone)


def read_backbones() -> list[Backbone]:
    """All backbones, by name."""
    return [read_backbone(name) for name in config_names("backbones")]
