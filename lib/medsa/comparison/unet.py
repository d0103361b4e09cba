"""The comparator from scratch: MONAI's U-Net on slices, taught as MA-SAM is, with the same pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import BasicUNet
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medsa.adapters.method import Method
from medsa.errors import WeightsError
from medsa.evaluation.protocol import Case
from medsa.files import write_atomically
from medsa.sam import Backbone, Sam
from medsa.training.classes import labels_of, teach
from medsa.training.engine import Progress
from medsa.training.train import CANDIDATE, Request, Told, Trained, prepare

WIDTHS = (32, 32, 64, 128, 256, 32)
TENSORS = "unet.safetensors"
METHOD = Method(name="unet", title="U-Net from scratch", paper="comparator")


@dataclass(frozen=True)
class UNet:
    """A U-Net for `labels` on slices as the encoder of `config` takes them, `image_size` pixels a side."""

    network: nn.Module
    config: Backbone
    image_size: int
    labels: tuple[str, ...]
    depth: int = 1

    def classify(self, images: Tensor) -> Tensor:
        """Logits (D, 1 + labels, S, S) of slices (D, 3, S, S)."""
        return self.network(images)

    def counts(self) -> dict[str, Any]:
        """As `AdaptedSam.counts`: all of it learns."""
        total = sum(parameter.numel() for parameter in self.network.parameters())
        return {"total": total, "trained": total, "trained_percent": 100.0, "parts": {}}


def fresh_unet(sam: Sam, labels: tuple[str, ...], seed: int) -> UNet:
    """An untrained one that sees what `sam` sees."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BasicUNet(2, in_channels=3, out_channels=1 + len(labels), features=WIDTHS)
    return UNet(network.to(sam.dense_pe.device).eval(), sam.config, sam.image_size, labels)


def train_unet(
    sam: Sam,
    training: Sequence[Case],
    validation: Sequence[Case],
    folder: Path,
    request: Request,
    *,
    resume: bool = False,
    told: Told = lambda _what, _part: None,
    report: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train a U-Net in `folder`, as `train_classes` does a method; `sam` says what its input looks like."""
    labels = labels_of(training, request)
    model = fresh_unet(sam, tuple(labels.values()), request.seed)
    prepare(folder, request, METHOD, resume)
    outcome = teach(
        model, dict(model.network.named_parameters()), training, validation, folder, request, labels,
        resume=resume, told=told, report=report, stop=stop,
    )  # fmt: skip
    candidate = folder / CANDIDATE
    candidate.mkdir(mode=0o700, parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()
    }
    write_atomically(candidate / TENSORS, save(tensors, {"labels": json.dumps(model.labels)}))
    return Trained(candidate, {}, outcome.seconds, outcome.steps)


def load_unet(sam: Sam, folder: Path) -> UNet:
    """What `train_unet` left in its `candidate` folder; raises `WeightsError`."""
    try:
        with safe_open(folder / TENSORS, framework="pt") as file:
            labels = tuple(json.loads(file.metadata()["labels"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        model = fresh_unet(sam, labels, 0)
        model.network.load_state_dict(tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"the U-Net in {folder} cannot be read: {error}") from None
    return model
