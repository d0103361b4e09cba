"""MA-SAM's mask heads, to the input's resolution: progressive upsampling and multi-scale fusion (2.4)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelNorm(nn.GroupNorm):
    """Layer norm over the channels of (B, C, H, W), as one group."""

    def __init__(self, channels: int) -> None:
        super().__init__(1, channels)


def _up(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(channels, out, kernel_size=2, stride=2), ChannelNorm(out), nn.GELU()
    )


def _widths(channels: int, steps: int) -> list[int]:
    return [channels, *(max(channels >> (step + 2), channels // 16) for step in range(steps))]


class ProgressiveUpsampling(nn.Module):
    """`steps` = n transposed convolutions of factor 2: (B, C, h, w) -> (B, C_out, h 2^n, w 2^n).

    Four steps bring SAM's 1/16 embedding back to the input's resolution; an encoder with a finer embedding
    needs fewer. `out_channels` is what a mask token's dot product meets.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        widths = _widths(channels, steps)
        self.layers = nn.Sequential(*(_up(a, b) for a, b in pairwise(widths)))
        self.out_channels = widths[-1]

    def forward(self, embedding: Tensor, image: Tensor) -> Tensor:  # noqa: ARG002 - shared signature
        """Embedding (B, C, h, w) after the two-way transformer, input (B, 3, S, S) -> (B, C_out, S, S)."""
        return self.layers(embedding)


class MultiScaleFusion(nn.Module):
    """A U-shaped head: at each step the upsampled embedding is joined by features of the image at that scale.

    The features come from a small convolutional pyramid over the input: the frozen encoder has one scale.
    """

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        widths = _widths(channels, steps)
        self.layers = nn.ModuleList(_up(a, b) for a, b in pairwise(widths))
        self.fuse = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * b, b, 3, padding=1), ChannelNorm(b), nn.GELU()) for b in widths[1:]
        )
        self.pyramid = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, b, 3, padding=1), ChannelNorm(b), nn.GELU()) for b in widths[1:]
        )
        self.out_channels = widths[-1]

    def forward(self, embedding: Tensor, image: Tensor) -> Tensor:
        """Embedding (B, C, h, w) after the two-way transformer, input (B, 3, S, S) -> (B, C_out, S, S)."""
        x = embedding
        for up, fuse, features in zip(self.layers, self.fuse, self.pyramid, strict=True):
            x = up(x)
            skip = features(F.interpolate(image, size=x.shape[-2:], mode="bilinear", antialias=True))
            x = fuse(torch.cat([x, skip], dim=1))
        return x
