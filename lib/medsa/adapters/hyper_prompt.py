"""HyP-Adpt: inner weights of an adapter made from the prompt (Med-SA, "HyP-Adpt", equations 1 and 2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsa.adapters.bottleneck import zero_linear

Conditioning = Literal["hyper", "add", "concat", "none"]


class PromptAdapter(nn.Module):
    """A bottleneck adapter that hears the prompt; base of the four ways of Med-SA's Table 3.

    `length` L of the embedding it adapts, `width` of the bottleneck, `prompt_length` of one prompt token.
    Called with x (B, T, L) and prompts (B, P, prompt_length), P >= 0; returns (B, T, L), zero at first.
    Every image hears its own prompts only. The prompt is reduced to a mean over its P tokens after a linear
    projection, so that the order of the clicks does not matter and any number of them fits.
    """

    def __init__(self, length: int, width: int, prompt_length: int) -> None:
        super().__init__()
        self.down = nn.Linear(length, width)
        self.up = zero_linear(width, length)
        self.reduce = nn.Linear(prompt_length, width)

    def prompt_embedding(self, prompts: Tensor) -> Tensor:
        """`e_prompt` (B, width) of prompts (B, P, prompt_length); zeros where there is no prompt token."""
        count = torch.ones_like(prompts[..., :1]).sum(dim=1).clamp(min=1)  # a trace keeps it a variable
        return self.reduce(prompts).sum(dim=1) / count

    def inner(self, e_down: Tensor, e_prompt: Tensor) -> Tensor:
        """What happens between the projections: (B, T, width), (B, width) -> (B, T, width)."""
        raise NotImplementedError

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        """(B, T, L), (B, P, prompt_length) -> (B, T, L)."""
        return self.up(self.inner(self.down(x), self.prompt_embedding(prompts)))


class HyperPromptAdapter(PromptAdapter):
    """HyP-Adpt: `W_n = reshape(M_n(e_prompt))` (1), `e_{n+1} = ReLU(Norm(e_n W_n))` (2), for `layers` layers.

    Each layer has its own MLP `M_n: width -> width * width`; Norm is a layer norm along the length.
    """

    def __init__(self, length: int, width: int, prompt_length: int, layers: int = 3) -> None:
        super().__init__(length, width, prompt_length)
        self.generate = nn.ModuleList(nn.Linear(width, width * width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))

    def inner(self, e_down: Tensor, e_prompt: Tensor) -> Tensor:
        width = e_down.shape[-1]
        for generate, norm in zip(self.generate, self.norms, strict=True):
            weight = generate(e_prompt).view(-1, width, width)
            e_down = F.relu(norm(e_down @ weight))
        return e_down


class AddPromptAdapter(PromptAdapter):
    """MSA, the first version: the reduced prompt is added before the ReLU."""

    def inner(self, e_down: Tensor, e_prompt: Tensor) -> Tensor:
        return F.relu(e_down + e_prompt[:, None])


class ConcatPromptAdapter(PromptAdapter):
    """The reduced prompt stands beside the reduced embedding; a linear layer brings both to the width."""

    def __init__(self, length: int, width: int, prompt_length: int) -> None:
        super().__init__(length, width, prompt_length)
        self.merge = nn.Linear(2 * width, width)

    def inner(self, e_down: Tensor, e_prompt: Tensor) -> Tensor:
        both = torch.cat([e_down, e_prompt[:, None].expand(-1, e_down.shape[1], -1)], dim=-1)
        return F.relu(self.merge(both))


class DeafAdapter(PromptAdapter):
    """The ablation's `none`: a plain bottleneck in the same place, which does not hear the prompt."""

    def __init__(self, length: int, width: int, prompt_length: int) -> None:
        super().__init__(length, width, prompt_length)
        del self.reduce

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:  # noqa: ARG002 - shared signature
        return self.up(F.relu(self.down(x)))


CONDITIONING: dict[Conditioning, type[PromptAdapter]] = {
    "hyper": HyperPromptAdapter,
    "add": AddPromptAdapter,
    "concat": ConcatPromptAdapter,
    "none": DeafAdapter,
}
