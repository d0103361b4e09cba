"""SD-Trans: the frozen attention runs once over space and once over depth (Med-SA, "SD-Trans")."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def depth_attention(attention: Callable[[Tensor], Tensor], x: Tensor, depth: int) -> Tensor:
    """Attend among the same position of all slices of a slab, with the block's own attention.

    `x` (B * D, H, W, L), D = `depth`, slices of one slab next to one another. The depth branch turns it into
    B * H * W sequences of D tokens, laid out as images of height D and width 1, so that SAM's decomposed
    relative positions see one axis of length D (and resize their table to it). Returns (B * D, H, W, L).
    """
    images, height, width, length = x.shape
    slabs = images // depth
    sequences = x.view(slabs, depth, height * width, length).transpose(1, 2)
    out = attention(sequences.reshape(slabs * height * width, depth, 1, length))
    return (
        out.view(slabs, height * width, depth, length).transpose(1, 2).reshape(images, height, width, length)
    )
