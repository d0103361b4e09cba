"""Adapter versions on disk, a folder with `adapter.safetensors` and `card.json`, and a bank of several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import medsa
from medsa.adapters.inject import AdaptedSam, adapt
from medsa.adapters.method import Method
from medsa.config import explain
from medsa.errors import NotFoundError, WeightsError
from medsa.files import write_atomically
from medsa.sam import Sam
from medsa.sam.backbone import PromptKind

TENSORS, CARD = "adapter.safetensors", "card.json"


class Card(BaseModel):
    """All that is needed to serve an adapter version and to train it again; no patient is named in it.

    `trained_prompts` are the prompts it was taught (None: those of its backbone), and so asked with, and
    `multimask` whether a single click was taught to give three masks to choose from, as SAM does. `studies`
    maps "training" and "validation" to hashed study ids, `metrics` whatever was measured before and after.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    backbone: str
    backbone_digest: str
    image_size: int
    trained_prompts: tuple[PromptKind, ...] | None = None
    multimask: bool = True
    labels: tuple[str, ...] = ()
    studies: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = Field(default_factory=dict)
    parent: str | None = None
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    medsa_version: str = medsa.__version__


def save_adapter(model: AdaptedSam, folder: Path, **card: object) -> Card:
    """Write a model's trained tensors and its card to `folder` (made if missing); more fields as in `Card`.

    The card is written last: a folder without one is not a version.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    base = model.base
    written = Card(
        method=model.method,
        backbone=base.config.name,
        backbone_digest=base.digest,
        image_size=base.image_size,
        **{"trained_prompts": model.trained_prompts, "multimask": model.multimask, **card},
    )
    write_atomically(folder / TENSORS, save(_trained(model)))
    write_atomically(folder / CARD, written.model_dump_json(indent=2).encode())
    return written


def read_card(folder: Path) -> Card:
    """The card of an adapter version; raises `NotFoundError` or `WeightsError`."""
    path = folder / CARD
    if not path.is_file():
        raise NotFoundError(f"{folder} is no adapter version: it has no {CARD}")
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise WeightsError(f"{path}: {explain(error)}") from None


def adapter_digest(folder: Path) -> str:
    """sha256 of an adapter version's tensors: its part in the key of an embedding."""
    return hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()


def load_adapter(sam: Sam, folder: Path) -> AdaptedSam:
    """The adapted model of a version on `sam`, in eval mode.

    Raises `WeightsError` when the version was made for another backbone, other weights or another input size,
    or when a tensor is missing, unknown, damaged or of another shape: each is named.
    """
    card = read_card(folder)
    for what, theirs, ours in (
        ("backbone", card.backbone, sam.config.name),
        ("weights of the backbone", card.backbone_digest, sam.digest),
        ("input size", card.image_size, sam.image_size),
    ):
        if theirs != ours:
            raise WeightsError(f"the adapter in {folder} was made for another {what}: {theirs}, not {ours}")
    try:
        tensors = load((folder / TENSORS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder / TENSORS} cannot be read: {error}") from None
    model = adapt(sam, card.method).to(sam.dense_pe.device).eval()
    _check(tensors, _trained(model), folder)
    model.adapters.load_state_dict(tensors, strict=False)
    if card.trained_prompts is not None:
        model.trained_prompts = card.trained_prompts
    model.multimask = card.multimask
    return model


class AdapterBank:
    """Adapter versions by name on one frozen base; each is read when it is first asked for."""

    def __init__(self, sam: Sam, folders: Mapping[str, Path]) -> None:
        self.sam = sam
        self.folders = dict(folders)
        self._models: dict[str, AdaptedSam] = {}

    def names(self) -> list[str]:
        return sorted(self.folders)

    def model(self, name: str) -> AdaptedSam:
        """The adapted model `name`; raises `NotFoundError` with the known names, `WeightsError`."""
        if name not in self.folders:
            raise NotFoundError(f"unknown adapter '{name}'; there are: {', '.join(self.names()) or 'none'}")
        if name not in self._models:
            self._models[name] = load_adapter(self.sam, self.folders[name])
        return self._models[name]


def _trained(model: AdaptedSam) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for _, name, parameter in model.trained_parameters()}


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    wrong = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [f"unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise WeightsError(f"the adapter in {folder} does not fit its method: {shown}")
