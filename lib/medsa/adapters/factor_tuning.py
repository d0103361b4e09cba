"""FacT, weight increments as a tensor train shared by all blocks (MA-SAM, section 2.2), and LoRA."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FactorTuning(nn.Module):
    """`dW_q = s U Sigma_q V`, `dW_v = s U Sigma_v V` for `blocks` attention layers of width L.

    U (L, r) and V (r, L) are shared by all blocks; Sigma_q and Sigma_v (r, r) are each block's own and start
    at zero, so that the increments start at zero. `scale` is s.
    """

    def __init__(self, length: int, rank: int, blocks: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.u = nn.Parameter(torch.empty(length, rank))
        self.v = nn.Parameter(torch.empty(rank, length))
        nn.init.xavier_uniform_(self.u)
        nn.init.xavier_uniform_(self.v)
        self.sigma_q = nn.Parameter(torch.zeros(blocks, rank, rank))
        self.sigma_v = nn.Parameter(torch.zeros(blocks, rank, rank))

    def increment(self, block: int) -> tuple[Tensor, Tensor]:
        """(dW_q, dW_v) of a block, each (L, L), to be used as `x @ dW`."""
        left = self.scale * self.u
        return left @ self.sigma_q[block] @ self.v, left @ self.sigma_v[block] @ self.v

    def forward(self, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """What is added to the queries and values of (..., L) inputs, each (..., L)."""
        reduced = self.scale * (x @ self.u)
        return reduced @ self.sigma_q[block] @ self.v, reduced @ self.sigma_v[block] @ self.v


class LoRA(nn.Module):
    """Low-rank increments of query and value, a pair a block: the comparator; used as FactorTuning is."""

    def __init__(self, length: int, rank: int, blocks: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.a_q = nn.Parameter(torch.empty(blocks, length, rank))
        self.a_v = nn.Parameter(torch.empty(blocks, length, rank))
        for block in range(blocks):
            nn.init.kaiming_uniform_(self.a_q[block], a=5**0.5)
            nn.init.kaiming_uniform_(self.a_v[block], a=5**0.5)
        self.b_q = nn.Parameter(torch.zeros(blocks, rank, length))
        self.b_v = nn.Parameter(torch.zeros(blocks, rank, length))

    def increment(self, block: int) -> tuple[Tensor, Tensor]:
        """(dW_q, dW_v) of a block, each (L, L), to be used as `x @ dW`."""
        return self.scale * self.a_q[block] @ self.b_q[block], self.scale * self.a_v[block] @ self.b_v[block]

    def forward(self, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """What is added to the queries and values of (..., L) inputs, each (..., L)."""
        return (
            self.scale * (x @ self.a_q[block]) @ self.b_q[block],
            self.scale * (x @ self.a_v[block]) @ self.b_v[block],
        )


class TunedQKV(nn.Module):
    """A frozen `qkv` projection (L -> 3L) whose queries and values get a block's increment.

    Its output is ordered q, k, v, each of all heads (segment-anything), or, with `heads` given, q, k, v of
    one head after the other (TinyViT).
    """

    def __init__(
        self, base: nn.Linear, tuning: FactorTuning | LoRA, block: int, heads: int | None = None
    ) -> None:
        super().__init__()
        self.block = block
        self.heads = heads
        self._shared = (base, tuning)  # in a tuple: both belong to others

    def _beside(self, query: Tensor, value: Tensor) -> Tensor:
        zero = torch.zeros_like(query)
        if self.heads is None:
            return torch.cat([query, zero, value], dim=-1)
        parts = [part.unflatten(-1, (self.heads, -1)) for part in (query, zero, value)]
        return torch.cat(parts, dim=-1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., L) -> (..., 3L); merged where nothing is to learn."""
        base, tuning = self._shared
        if torch.is_grad_enabled():
            return base(x) + self._beside(*tuning(x, self.block))
        return F.linear(x, self.merged(), base.bias)

    def merged(self) -> Tensor:
        """The projection's weight (3L, L) with the increment in it; the frozen weight stays as it is."""
        base, tuning = self._shared
        return base.weight + self._beside(*tuning.increment(self.block)).T
