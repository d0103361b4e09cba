"""The adapter every Med-SA variant is made of: down-projection, ReLU, up-projection (Med-SA, Method)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """`A(x) = up(ReLU(down(x)))`, to be added to x by whoever places it.

    Input and output (..., L) with L = `length`; `width` is the bottleneck's m. The up-projection starts at
    zero, so that a fresh adapter adds exactly nothing.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(length, width)
        self.up = zero_linear(width, length)

    def forward(self, x: Tensor) -> Tensor:
        """(..., L) -> (..., L)."""
        return self.up(F.relu(self.down(x)))


def zero_linear(width: int, length: int) -> nn.Linear:
    """A linear layer that starts at zero, weight and bias: every adapter's last one."""
    layer = nn.Linear(width, length)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
