"""SAM's mask decoder with the image's projections folded into the tokens: same masks, half the arithmetic.

A mask is asked for with about seven tokens, but the two-way transformer projects all h * w image positions in
every attention. With `q = Wq t` and `k = Wk x`, `q . k = (Wkᵀ q) . x`: it is cheaper to carry the few tokens
to the image's width than the image to theirs. So it is for values, `softmax(s) (V x) = V (softmax(s) x)`, and
for output projections. A constant added to all scores of a softmax changes nothing, so key biases vanish.
Besides, only the masks that are asked for are upscaled, and transposed convolutions with stride = kernel are
plain matrix products.
"""

from __future__ import annotations

import math
import re
from typing import cast

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn


class FoldedDecoder(nn.Module):
    """A stock `MaskDecoder` on one image, for tracing; holds its modules, not copies of their weights.

    `dense_pe` (1, C, h, w); `multimask` chooses the three masks or the single one. Hidden states are
    (N, h * w, C). Raises `TypeError` for a decoder that is not made of segment_anything's own blocks.
    """

    image_pe: Tensor

    def __init__(self, decoder: MaskDecoder, dense_pe: Tensor, multimask: bool) -> None:
        super().__init__()
        _check_stock(decoder)
        self.decoder = decoder
        self.grid = (dense_pe.shape[2], dense_pe.shape[3])
        self.first: int = 1 if multimask else 0
        self.last: int = decoder.num_mask_tokens if multimask else 1
        self.register_buffer("image_pe", dense_pe.flatten(2).transpose(1, 2), persistent=False)

    def forward(self, embedding: Tensor, dense: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, M, 4h, 4w) and predicted IoU (N, M).

        `embedding` (1, C, h, w), `dense` (1 or N, C, h, w) or (1, C, 1, 1), `sparse` (N, P, C).
        """
        decoder, transformer = self.decoder, self.decoder.transformer
        learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).unsqueeze(0)
        tokens = torch.cat([learned.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        keys = (embedding + dense).flatten(2).transpose(1, 2)
        queries = tokens
        for n, block in enumerate(transformer.layers):
            queries, keys = self.two_way(n, block, queries, keys, tokens)

        used = [0, *range(1 + self.first, 1 + self.last)]
        queries, tokens = queries[:, used], tokens[:, used]
        attended = attend_to_image(
            transformer.final_attn_token_to_image, queries + tokens, keys + self.image_pe, keys
        )
        queries = transformer.norm_final_attn(queries + attended)
        networks = decoder.output_hypernetworks_mlps[self.first : self.last]
        weights = torch.stack([network(queries[:, 1 + i]) for i, network in enumerate(networks)], dim=2)
        logits = self.upscale(keys, weights)
        return logits, decoder.iou_prediction_head(queries[:, 0])[:, self.first : self.last]

    def two_way(
        self,
        n: int,  # noqa: ARG002 - who adapts the blocks needs to know which
        block: TwoWayAttentionBlock,
        queries: Tensor,
        keys: Tensor,
        tokens: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Block n: tokens to themselves, tokens to image, MLP, image to tokens."""
        queries = attend_to_each_other(block, queries, tokens)
        placed_keys = keys + self.image_pe
        queries = block.norm2(
            queries + attend_to_image(block.cross_attn_token_to_image, queries + tokens, placed_keys, keys)
        )
        queries = block.norm3(queries + block.mlp(queries))
        attended = attend_to_tokens(block.cross_attn_image_to_token, placed_keys, queries + tokens, queries)
        return queries, block.norm4(keys + attended)

    def upscale(self, keys: Tensor, weights: Tensor) -> Tensor:
        """Logits (N, M, 4h, 4w) of image positions (N, h * w, C) under per-mask weights (N, C / 8, M)."""
        count, (height, width), masks = weights.shape[0], self.grid, self.last - self.first
        first, norm, _, second, _ = self.decoder.output_upscaling
        x = _transposed_convolution(first, keys)
        x = F.gelu(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        x = F.gelu(_transposed_convolution(second, x))
        x = torch.matmul(x, weights).view(count, height, width, 2, 2, 2, 2, masks)
        return x.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(count, masks, 4 * height, 4 * width)


def attend_to_each_other(block: TwoWayAttentionBlock, queries: Tensor, tokens: Tensor) -> Tensor:
    """Tokens (N, T, C) attend to themselves, in the block's own way; (N, T, C)."""
    if block.skip_first_layer_pe:
        queries = block.self_attn(queries, queries, queries)
    else:
        placed = queries + tokens
        queries = queries + block.self_attn(placed, placed, queries)
    return block.norm1(queries)


def attend_to_image(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Tokens (N, T, C) attend to image positions (1 or N, h * w, C); (N, T, C)."""
    count, length, _ = queries.shape
    heads = attention.num_heads
    size = attention.internal_dim // heads
    q = attention.q_proj(queries).view(count, length, heads, size).transpose(1, 2) / math.sqrt(size)
    carried = torch.matmul(q, attention.k_proj.weight.view(heads, size, -1)).flatten(1, 2)
    scores = torch.matmul(carried, keys.transpose(1, 2)).softmax(dim=-1)
    seen = torch.matmul(scores, values).view(count, heads, length, -1)
    out = torch.matmul(seen, attention.v_proj.weight.view(heads, size, -1).transpose(1, 2))
    return attention.out_proj(out.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def attend_to_tokens(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Image positions (1 or N, h * w, C) attend to tokens (N, T, C); (N, h * w, C)."""
    count, length, _ = keys.shape
    heads = attention.num_heads
    size = attention.internal_dim // heads
    k = attention.k_proj(keys).view(count, length, heads, size).transpose(1, 2) / math.sqrt(size)
    v = attention.v_proj(values).view(count, length, heads, size).transpose(1, 2)
    carried = torch.matmul(k, attention.q_proj.weight.view(heads, size, -1)).flatten(1, 2)
    offset = torch.matmul(k, attention.q_proj.bias.view(heads, size, 1)).flatten(1, 2)
    scores = torch.matmul(carried, queries.transpose(1, 2)) + offset
    scores = scores.view(count, heads, length, queries.shape[1]).softmax(dim=2).flatten(1, 2)
    given = torch.matmul(v, attention.out_proj.weight.T.reshape(heads, size, -1)).flatten(1, 2)
    return torch.matmul(scores.transpose(1, 2), given) + attention.out_proj.bias


def _transposed_convolution(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Stride 2, kernel 2 on positions (N, L, C): (N, 4 L, C'), the four new positions of each in a row."""
    weight, bias = layer.weight.permute(0, 2, 3, 1).flatten(1), cast(Tensor, layer.bias)
    return (torch.matmul(x, weight) + bias.repeat(4)).view(x.shape[0], -1, layer.out_channels)


_STOCK: dict[str, type] = {
    r"": MaskDecoder,
    r"transformer": TwoWayTransformer,
    r"transformer\.layers\.\d+": TwoWayAttentionBlock,
    r"transformer\.(layers\.\d+\.cross|final)_attn_\w+": Attention,
    r"transformer\.(layers\.\d+\.cross|final)_attn_\w+\.\w+_proj": nn.Linear,
    r"output_upscaling\.[03]": nn.ConvTranspose2d,
    r"output_upscaling\.1": LayerNorm2d,
    r"output_upscaling\.[24]": nn.GELU,
}


def _check_stock(decoder: nn.Module) -> None:
    """What is not called here but computed in another way must be segment_anything's own, without hooks."""
    for name, part in decoder.named_modules():
        kinds = [kind for pattern, kind in _STOCK.items() if re.fullmatch(pattern, name)]
        if kinds and (type(part) not in kinds or part._forward_hooks or part._forward_pre_hooks):
            raise TypeError(f"{name or 'the mask decoder'} is not stock: the decoder cannot be folded")
