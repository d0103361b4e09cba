"""MA-SAM's 3D adapter: a convolution across a slab's slices inside a bottleneck (MA-SAM, section 2.3)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from medsa.adapters.bottleneck import zero_linear


class VolumetricAdapter(nn.Module):
    """`x + up(GELU(conv3d(down(norm(x)))))`; the convolution is 3 x 1 x 1, one step to either side in depth.

    Input and output (B * D, H, W, L), slices of one slab next to one another. Starts as the identity.
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(length)
        self.down = nn.Linear(length, width)
        self.conv = nn.Conv3d(width, width, kernel_size=(3, 1, 1), padding=(1, 0, 0))
        self.up = zero_linear(width, length)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """(B * D, H, W, L) -> (B * D, H, W, L), D = `depth`."""
        images, height, width, _ = x.shape
        reduced = self.down(self.norm(x)).view(images // depth, depth, height, width, -1)
        mixed = self.conv(reduced.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        return x + self.up(F.gelu(mixed)).view_as(x)
