"""TinyViT (Wu et al., ECCV 2022) as the image encoder of MobileSAM and LiteMedSAM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from medsa.sam.attention import attend


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm."""

    def __init__(self, width: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(width, out, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(out))


class PatchEmbed(nn.Module):
    """(B, 3, S, S) -> (B, width, S / patch, S / patch); `patch` 4 (MobileSAM) or 1 (LiteMedSAM)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        kernel, stride = (3, 2) if patch == 4 else (1, 1)
        self.seq = nn.Sequential(
            ConvNorm(3, width // 2, kernel, stride), nn.GELU(), ConvNorm(width // 2, width, kernel, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck with a depthwise convolution, (B, C, H, W) -> same."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = width * expansion
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """(B, C, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, out)
        self.conv2 = ConvNorm(out, out, 3, stride, groups=out)
        self.conv3 = ConvNorm(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Multi-head attention in one window with a learned bias per distance, (B, window², C) -> same."""

    index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        cell = torch.arange(window * window, device="cpu")
        row, column = cell // window, cell % window
        distance = (row[:, None] - row).abs() * window + (column[:, None] - column).abs()
        self.register_buffer("index", distance, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        windows, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(windows, tokens, self.heads, -1).transpose(1, 2)
        q, k, v = qkv.chunk(3, dim=-1)
        bias = self.attention_biases[:, self.index].unsqueeze(0)
        x = attend(q, k, v, bias)
        return self.proj(x.transpose(1, 2).reshape(windows, tokens, width))


class Mlp(nn.Module):
    """Norm and two layers, (..., C) -> same."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, width * ratio)
        self.fc2 = nn.Linear(width * ratio, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(x))

    def layers(self, x: Tensor) -> Tensor:
        """What follows the norm, (..., C) -> same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Windowed attention, depthwise convolution, MLP; (B, H, W, C) -> same. Windows are padded with zeros."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = ConvNorm(width, width, 3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)

    def attend(self, x: Tensor) -> Tensor:
        """Attention within windows, (B, H, W, C) -> same."""
        batch, height, width, channels = x.shape
        side = self.window
        bottom, right = -height % side, -width % side
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
        rows, columns = (height + bottom) // side, (width + right) // side
        x = x.view(batch, rows, side, columns, side, channels).transpose(2, 3)
        x = self.attn(x.reshape(-1, side * side, channels))
        x = x.view(batch, rows, columns, side, side, channels).transpose(2, 3)
        return x.reshape(batch, rows * side, columns * side, channels)[:, :height, :width]


class Stage(nn.Module):
    """Blocks, then the merging into the next stage where there is one, (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.blocks[0], MBConv):
            for block in self.blocks:
                x = block(x)
        else:
            x = x.permute(0, 2, 3, 1)
            for block in self.blocks:
                x = block(x)
            x = x.permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """Image encoder, (B, 3, S, S) -> (B, out, h, h) with h = S / (4 * patch), for any S of that multiple.

    `widths`, `depths`, `heads`, `windows` per stage; the first stage is convolutional and uses the first two.
    """

    def __init__(
        self,
        patch: int,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        windows: Sequence[int],
        out: int = 256,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(widths[0], patch)
        stages = []
        for i, depth in enumerate(depths):
            blocks: list[nn.Module] = (
                [MBConv(widths[i]) for _ in range(depth)]
                if i == 0
                else [Block(widths[i], heads[i], windows[i]) for _ in range(depth)]
            )
            last = i == len(depths) - 1
            merging = None if last else PatchMerging(widths[i], widths[i + 1], stride=2 if i < 2 else 1)
            stages.append(Stage(blocks, merging))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], out, 1, bias=False),
            LayerNorm2d(out),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            LayerNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for stage in self.layers:
            x = stage(x)
        return self.neck(x)
