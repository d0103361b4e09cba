"""A small U-Net on the slice's own pixels that puts the edge of the decoder's masks right.

A decoder that learns on the frozen encoder's embeddings soon knows them by heart. The refiner sees the
picture and the logits, and adds to the logits; untaught it adds nothing. It may be told what is asked for. No
paper of the seeds has it; HQ-SAM mends edges from the encoder's early features instead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALE = 8.0
"""Logits beyond it are as sure as can be."""


def _layer(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.GroupNorm(4, out), nn.GELU())


def _two(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(_layer(channels, out), _layer(out, out))


class Refiner(nn.Module):
    """What makes logits better, from them and the picture under them, whatever the grid.

    `width`, `levels` and `stride` as in `Refinement`; `widths` are the channels of its levels.
    """

    def __init__(self, width: int, levels: int, stride: int) -> None:
        super().__init__()
        self.widths = widths = [width << level for level in range(levels)]
        self.stem = _layer(3, width // 2, stride)
        self.down = nn.ModuleList(_two(a, b) for a, b in zip([width // 2 + 2, *widths], widths, strict=False))
        self.up = nn.ModuleList(_two(3 * out, out) for out in widths[:-1])
        self.out = nn.Conv2d(width, 1, 1)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits: Tensor, pictures: Tensor, about: Tensor | None = None) -> Tensor:
        """Logits (N, M, c, c) of pictures (N, 1 or 3, s, s), 0..1 -> what is to be added, (N, M, c, c).

        `about` (N or 1, sum of `widths`), what is asked for, is added to the levels.
        """
        masks, side = int(logits.shape[1]), int(logits.shape[-1])  # whoever traces it takes them as constant
        seen = self.stem(F.adaptive_avg_pool2d(pictures.to(logits), side).expand(-1, 3, -1, -1))
        seen = _for_each(seen, masks)
        asked = F.adaptive_avg_pool2d(logits.reshape(-1, 1, side, side), int(seen.shape[-1]))
        asked = (asked / SCALE).clamp(-1, 1)
        x, levels = torch.cat([seen, asked, torch.sigmoid(SCALE * asked)], dim=1), list[Tensor]()
        told = logits.new_zeros(1, sum(self.widths)) if about is None else about
        told = told if len(told) == 1 else _for_each(told, masks)
        for n, (down, part) in enumerate(zip(self.down, told.split(self.widths, dim=1), strict=True)):
            x = down(F.max_pool2d(x, 2, ceil_mode=True) if n else x) + part[:, :, None, None]
            levels.append(x)
        for up, finer in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = up(torch.cat([finer, _resized(x, int(finer.shape[-1]))], dim=1))
        return _resized(self.out(x), side).reshape(-1, masks, side, side)


def _for_each(values: Tensor, masks: int) -> Tensor:
    return values.repeat_interleave(masks, dim=0) if masks > 1 else values


def _resized(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
