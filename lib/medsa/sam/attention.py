"""SAM's attention with relative positions folded into longer queries and keys: no bias matrix is ever built.

The bias of query (r, c) for key (r', c') is `q . R_h[r - r'] + q . R_w[c - c']`. Append to each query its
products with all rows' and all columns' vectors, and to each key the indicators of its row and its column:
one dot product gives score and bias, and torch's fused attention needs no memory for all pairs (ViT-B at
1024 px takes 1.5 instead of 3.6 GiB).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor

SHORT = 256
"""Tokens up to which the weights of all pairs may be kept for the backward pass."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Scaled dot-product attention of (B, heads, N, C), with `bias` (1, heads, N, N) added to the scores.

    torch's fused kernel, but step by step where sequences of at most `SHORT` learn in bfloat16 on a CPU: its
    backward pass takes two to nine times as long there (`benchmarks/attention.py`).
    """
    learns = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    slow = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[-2] <= SHORT
    if not (learns and slow):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    scores = (q * (scale or q.shape[-1] ** -0.5)) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias.to(scores)).softmax(dim=-1) @ v


class FoldedAttention(Attention):
    """Computes what `Attention` with relative positions computes, (B, H, W, C) -> same."""

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        tokens, size = height * width, channels // self.num_heads
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, size).permute(2, 0, 3, 1, 4)
        grid = q.unflatten(2, (height, width))
        to_rows = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(height, height, self.rel_pos_h))
        to_columns = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(width, width, self.rel_pos_w))
        rows = torch.eye(height, dtype=x.dtype, device=x.device).repeat_interleave(width, dim=0)
        columns = torch.eye(width, dtype=x.dtype, device=x.device).repeat(height, 1)
        place = torch.cat([rows, columns], dim=1).expand(batch, self.num_heads, -1, -1)
        q = torch.cat([q * self.scale, to_rows.flatten(2, 3), to_columns.flatten(2, 3)], dim=-1)
        k = torch.cat([k, place], dim=-1)
        v = F.pad(v, (0, height + width))  # fused kernels want values as long as keys
        x = attend(q, k, v, scale=1.0)[..., :size]
        return self.proj(x.transpose(1, 2).reshape(batch, height, width, channels))
