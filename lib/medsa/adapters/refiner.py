"""A small U-Net on the slice's own pixels that puts the edge of the decoder's masks right.

The frozen encoder sees 16 x 16 pixels as one token: what it says of an edge is coarse, and a decoder that
learns on its embeddings soon knows them by heart. The refiner sees the picture and the logits, and adds to
the logits; untaught it adds nothing. No paper of the seeds has it; HQ-SAM mends edges from the encoder's
early features instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsa.data.model_input import PICTURE

SCALE = 8.0
"""Logits beyond it are as sure as can be."""


def _layer(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.GroupNorm(4, out), nn.GELU())


def _two(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(_layer(channels, out), _layer(out, out))


class Refiner(nn.Module):
    """Logits on a grid of `cells` a side, with a picture of `PICTURE` pixels a side, to better logits.

    `width` is the channels of its finest level; each of the two coarser ones has twice as many.
    """

    def __init__(self, cells: int, width: int) -> None:
        super().__init__()
        halvings = max(1, PICTURE // cells).bit_length() - 1
        self.scale = 1 << halvings
        stem = [_layer(3, width // 2, min(2, self.scale))]
        stem += [_layer(width // 2, width // 2, 2) for _ in range(halvings - 1)]
        self.stem = nn.Sequential(*stem)
        self.fine = _two(width // 2 + 2, width)
        self.middle = _two(width, 2 * width)
        self.coarse = _two(2 * width, 4 * width)
        self.join_middle = _two(6 * width, 2 * width)
        self.join_fine = _two(3 * width, width)
        self.out = nn.Conv2d(width, 1, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits: Tensor, pictures: Tensor) -> Tensor:
        """Logits (N, M, c, c) of pictures (N, 1 or 3, s, s), 0..1 -> (N, M, c, c); c a multiple of 4.

        The grid may be another than that of `cells`: the pictures are made to fit it.
        """
        count, masks, side, _ = logits.shape
        pictures = F.adaptive_avg_pool2d(pictures.to(logits), side * self.scale)
        seen = self.stem(pictures.expand(-1, 3, -1, -1)).repeat_interleave(masks, dim=0)
        asked = (logits.reshape(count * masks, 1, side, side) / SCALE).clamp(-1, 1)
        fine = self.fine(torch.cat([seen, asked, torch.sigmoid(SCALE * asked)], dim=1))
        middle = self.middle(F.max_pool2d(fine, 2))
        coarse = self.coarse(F.max_pool2d(middle, 2))
        middle = self.join_middle(torch.cat([middle, _doubled(coarse)], dim=1))
        fine = self.join_fine(torch.cat([fine, _doubled(middle)], dim=1))
        return logits + self.out(fine).reshape(logits.shape)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
