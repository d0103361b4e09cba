"""A run's state on disk: one file of tensors with its numbers beside them, replaced whole, never pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from medsa.errors import WeightsError
from medsa.files import write_atomically

Parameters = Mapping[str, nn.Parameter]


class Averages:
    """Running means of parameters, quick to follow at first and slow later."""

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.steps = 0
        self.means = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def follow(self) -> None:
        """Move towards the parameters as they are after an optimizer's step."""
        self.steps += 1
        weight = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
        values = [parameter.detach() for parameter in self.parameters.values()]
        torch._foreach_lerp_(list(self.means.values()), values, weight)

    def swap(self) -> None:
        """Exchange means and parameters; call it twice to have them back."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                kept = parameter.clone()
                parameter.copy_(self.means[name])
                self.means[name].copy_(kept)


def save_state(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and what JSON can hold to `path`, mode 0600, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(plain, {"state": json.dumps(state)}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save_state` wrote; raises `WeightsError` when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            return tensors, json.loads(file.metadata()["state"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the checkpoint {path} cannot be read: {error}") from None


def pack(parameters: Parameters, averages: Averages, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a run: `weights/`, `means/` and the optimizer's, by the parameters' names."""
    tensors = {f"weights/{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"means/{name}": mean for name, mean in averages.means.items()}
    for name, parameter in parameters.items():
        for what, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{what}/{name}"] = torch.as_tensor(value)
    return tensors


def unpack(
    tensors: Mapping[str, Tensor],
    parameters: Parameters,
    averages: Averages,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Put back what `pack` took; raises `WeightsError` when it is of another model."""
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(tensors[f"weights/{name}"])
                averages.means[name].copy_(tensors[f"means/{name}"])
    except (KeyError, RuntimeError):
        raise WeightsError("the checkpoint was made with another method or backbone") from None
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            what, _, name = rest.partition("/")
            parameter = parameters[name]
            optimizer.state[parameter][what] = tensor if what == "step" else tensor.to(parameter)
