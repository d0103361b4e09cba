"""Walks a frozen image encoder block by block and adds the adapters where the papers put them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, cast

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import window_partition, window_unpartition
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medsa.adapters.bottleneck import Adapter
from medsa.adapters.factor_tuning import FactorTuning, LoRA, TunedQKV
from medsa.adapters.method import EncoderAdapters
from medsa.adapters.space_depth import depth_attention
from medsa.adapters.volumetric import VolumetricAdapter
from medsa.sam.attention import attend
from medsa.sam.tiny_vit import Block as TinyViTBlock
from medsa.sam.tiny_vit import TinyViT, WindowAttention

Block = Any  # a transformer block of segment-anything's ViT or of TinyViT
Encoder = Any  # the image encoder that holds them


def transformer_blocks(encoder: Encoder) -> list[Block]:
    """The attention blocks of an image encoder, first to last (TinyViT's convolutional stage has none)."""
    if isinstance(encoder, TinyViT):
        return [module for module in encoder.modules() if isinstance(module, TinyViTBlock)]
    if isinstance(encoder, ImageEncoderViT):
        return list(encoder.blocks)
    raise TypeError(f"no adapters are known for an image encoder of type {type(encoder).__name__}")


def block_width(block: Block) -> int:
    """Embedding length L of a block."""
    return block.attn.qkv.in_features


class EncoderAdaptation(nn.Module):
    """All adapters of one image encoder, by place; holds nothing of the encoder itself.

    Members are dicts from the block's number (as text) to its adapter: `encoder_attention`, `encoder_mlp`,
    `encoder_depth`, `encoder_global`, `volumetric`; `fact` maps a block width to its shared increments.
    """

    def __init__(self, blocks: Sequence[Block], method: EncoderAdapters) -> None:
        super().__init__()
        self.scale = method.scale
        first = 0 if method.last is None else max(0, len(blocks) - method.last)
        placed = range(first, len(blocks))
        widths = [block_width(block) for block in blocks]

        def adapters(wanted: bool) -> nn.ModuleDict:
            return nn.ModuleDict(
                {str(n): Adapter(widths[n], _width(widths[n], method.ratio)) for n in placed if wanted}
            )

        self.encoder_attention = adapters(method.attention)
        self.encoder_mlp = adapters(method.mlp)
        self.encoder_depth = adapters(method.depth)
        self.encoder_global = adapters(method.path)
        self.volumetric = nn.ModuleDict(
            {
                f"{place}_{n}": VolumetricAdapter(widths[n], _width(widths[n], method.ratio))
                for n in placed
                for place in ("before", "after")
                if method.volumetric in (True, place)
            }
        )
        self.fact = nn.ModuleDict()
        self._tuned: dict[int, tuple[FactorTuning | LoRA, int]] = {}
        if method.low_rank is not None:
            kind = FactorTuning if method.low_rank.kind == "fact" else LoRA
            for width in dict.fromkeys(widths[first:]):
                members = [n for n in placed if widths[n] == width]
                shared = kind(width, method.low_rank.rank, len(members), method.low_rank.scale)
                self.fact[str(width)] = shared
                self._tuned |= {n: (shared, position) for position, n in enumerate(members)}

    def run_block(self, n: int, block: Block, x: Tensor, depth: int) -> Tensor:
        """Block n with its adapters, (B * D, H, W, L) -> same; without any of them exactly the block."""
        entered = x
        key = str(n)
        is_tiny = isinstance(block, TinyViTBlock)
        if f"before_{n}" in self.volumetric:
            x = self.volumetric[f"before_{n}"](x, depth)
        tuned = self._tuned_block(n, block)
        normed = x if is_tiny else block.norm1(x)
        attended = tuned.attend(normed) if is_tiny else _attend_in_windows(tuned, normed)
        update = attended
        if key in self.encoder_attention:
            update = update + self.encoder_attention[key](attended)
        if key in self.encoder_depth and depth > 1:
            along = _attend_in_depth(tuned) if is_tiny else tuned.attn
            update = update + self.encoder_depth[key](depth_attention(along, normed, depth))
        x = x + update
        if f"after_{n}" in self.volumetric:
            x = self.volumetric[f"after_{n}"](x, depth)
        if is_tiny:
            x = block.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            normed = block.mlp.norm(x)
            out = x + block.mlp.layers(normed)
        else:
            normed = block.norm2(x)
            out = x + block.mlp(normed)
        if key in self.encoder_mlp:
            out = out + self.scale * self.encoder_mlp[key](normed)
        if key in self.encoder_global:
            out = out + self.encoder_global[key](entered)
        return out

    def _tuned_block(self, n: int, block: Block) -> Block:
        """The block with its queries and values tuned; the block itself stays as it is for everyone else."""
        if n not in self._tuned:
            return block
        tuning, position = self._tuned[n]
        heads = block.attn.heads if isinstance(block, TinyViTBlock) else None
        qkv = TunedQKV(block.attn.qkv, tuning, position, heads)
        return _with_part(block, attn=_with_part(block.attn, qkv=qkv))


class AdaptedEncoder(nn.Module):
    """An image encoder with its adapters; it holds both, and copies neither."""

    def __init__(self, encoder: Encoder, adaptation: EncoderAdaptation) -> None:
        super().__init__()
        self.encoder = encoder
        self.adaptation = adaptation

    def forward(self, images: Tensor, depth: int = 1, checkpointing: bool = False) -> Tensor:
        """Embeddings (B * D, C, h, w) of images (B * D, 3, S, S), D = `depth` slices of a slab in a row."""
        return encode(self.encoder, images, depth, self.adaptation.run_block, checkpointing)


def encode(
    encoder: Encoder,
    images: Tensor,
    depth: int,
    run: Callable[[int, Block, Tensor, int], Tensor],
    checkpointing: bool = False,
) -> Tensor:
    """Embeddings (B * D, C, h, w) of images (B * D, 3, S, S), each transformer block computed by `run`.

    With `checkpointing` a block's activations are computed again in the backward pass instead of being kept.
    """
    numbers = {id(block): n for n, block in enumerate(transformer_blocks(encoder))}

    def step(block: Block, x: Tensor) -> Tensor:
        if checkpointing and torch.is_grad_enabled():
            return checkpoint(run, numbers[id(block)], block, x, depth, use_reentrant=False)
        return run(numbers[id(block)], block, x, depth)

    if isinstance(encoder, TinyViT):
        convolutional, *stages = cast(Any, encoder.layers)
        x = convolutional(encoder.patch_embed(images))
        for stage in stages:
            x = x.permute(0, 2, 3, 1)
            for block in stage.blocks:
                x = step(block, x)
            x = x.permute(0, 3, 1, 2)
            x = x if stage.downsample is None else stage.downsample(x)
        return encoder.neck(x)
    x = encoder.patch_embed(images)
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        x = step(block, x)
    return encoder.neck(x.permute(0, 3, 1, 2))


def _width(length: int, ratio: float) -> int:
    return max(1, round(length * ratio))


def _attend_in_windows(block: Block, x: Tensor) -> Tensor:
    if block.window_size == 0:
        return block.attn(x)
    size = x.shape[1:3]
    windows, padded = window_partition(x, block.window_size)
    return window_unpartition(block.attn(windows), block.window_size, padded, size)


def _attend_in_depth(block: TinyViTBlock) -> Callable[[Tensor], Tensor]:
    attention: WindowAttention = block.attn

    def across(sequences: Tensor) -> Tensor:
        """(N, D, 1, L) -> same, without TinyViT's biases: they are of distances in a window."""
        count, depth, _, width = sequences.shape
        qkv = attention.qkv(attention.norm(sequences)).view(count, depth, attention.heads, -1).transpose(1, 2)
        joined = attend(*qkv.chunk(3, dim=-1))
        return attention.proj(joined.transpose(1, 2).reshape(count, depth, width)).unsqueeze(2)

    return across


def _with_part(module: Block, **parts: nn.Module) -> Block:
    """A module that shares all with `module` but the named parts."""
    changed = copy(module)
    changed.__dict__["_modules"] = {**module._modules, **parts}
    return changed
