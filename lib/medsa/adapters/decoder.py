"""Walks SAM's mask decoder layer by layer, each image with its own prompts, and adds the adapters."""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from medsa.adapters.bottleneck import Adapter
from medsa.adapters.hyper_prompt import CONDITIONING
from medsa.adapters.method import DecoderAdapters, MaskHead
from medsa.adapters.upsampling import MultiScaleFusion, ProgressiveUpsampling
from medsa.sam.folded_decoder import (
    FoldedDecoder,
    attend_to_each_other,
    attend_to_image,
    attend_to_tokens,
)

Block = Any  # a two-way block of segment-anything's mask decoder


class DecoderAdaptation(nn.Module):
    """Three adapters for each chosen two-way block (Med-SA, Method, figure 1 d).

    `prompted` stands on the attention from prompt to image and hears the prompt, `mlp` beside the MLP as
    in the encoder, `image` after the residual of the attention from image to prompt: `norm4(x + A(x))`. The
    paper's second layer norm there is the block's own `norm4`: the main path is the base's at step 0.
    """

    def __init__(self, length: int, method: DecoderAdapters) -> None:
        super().__init__()
        self.scale = method.scale
        width = max(1, round(length * method.ratio))
        conditioned = CONDITIONING[method.conditioning]
        names = [str(block) for block in method.blocks]
        self.prompted = nn.ModuleDict({name: conditioned(length, width, length) for name in names})
        self.mlp = nn.ModuleDict({name: Adapter(length, width) for name in names})
        self.image = nn.ModuleDict({name: Adapter(length, width) for name in names})

    def after_image(self, n: int, block: Block, queries: Tensor, heard: Tensor, prompts: Tensor) -> Tensor:
        """Tokens (B, T, C) of block n after what they `heard` of the image and the MLP; prompts (B, P, C)."""
        key = str(n)
        if key not in self.prompted:
            queries = block.norm2(queries + heard)
            return block.norm3(queries + block.mlp(queries))
        queries = block.norm2(queries + (heard + self.prompted[key](heard, prompts)))
        return block.norm3(queries + block.mlp(queries) + self.scale * self.mlp[key](queries))

    def after_tokens(self, n: int, block: Block, image: Tensor) -> Tensor:
        """Image positions (B, h * w, C) of block n after what they saw of the tokens."""
        key = str(n)
        return block.norm4(image + self.image[key](image) if key in self.image else image)


class ClassHead(nn.Module):
    """MA-SAM's multi-class head: a token a class, its dot product with features at the input's resolution."""

    def __init__(self, method: MaskHead, length: int, steps: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(method.classes, length)
        kind = {"progressive": ProgressiveUpsampling, "fusion": MultiScaleFusion}[method.kind]
        self.upsample = kind(length, steps)
        self.hyper = nn.ModuleList(
            MLP(length, length, self.upsample.out_channels, 3) for _ in range(method.classes)
        )

    def forward(self, tokens: Tensor, embedding: Tensor, images: Tensor) -> Tensor:
        """Logits (B, K, S, S) of tokens (B, K, C), embedding (B, C, h, w), images (B, 3, S, S)."""
        features = self.upsample(embedding, images)
        weights = torch.stack([hyper(tokens[:, n]) for n, hyper in enumerate(self.hyper)], dim=1)
        return torch.einsum("bkc,bchw->bkhw", weights, features)


def two_way(
    decoder: MaskDecoder,
    own_tokens: Tensor,
    embedding: Tensor,
    position: Tensor,
    sparse: Tensor,
    adaptation: DecoderAdaptation,
) -> tuple[Tensor, Tensor]:
    """The two-way transformer on pairs: image n sees the prompts of image n only.

    `own_tokens` (T, C) are the decoder's, `embedding` (B, C, h, w) has the dense prompt added, `position`
    (1, C, h, w), `sparse` (B, P, C) prompt tokens. Returns tokens (B, T + P, C) and the image (B, C, h, w).
    """
    batch, length, height, width = embedding.shape
    tokens = torch.cat([own_tokens.expand(batch, -1, -1), sparse], dim=1)
    image = embedding.flatten(2).transpose(1, 2)
    place = position.flatten(2).transpose(1, 2)
    queries = tokens
    for n, layer in enumerate(decoder.transformer.layers):
        queries = attend_to_each_other(layer, queries, tokens)
        heard = layer.cross_attn_token_to_image(q=queries + tokens, k=image + place, v=image)
        queries = adaptation.after_image(n, layer, queries, heard, sparse)
        image = image + layer.cross_attn_image_to_token(q=image + place, k=queries + tokens, v=queries)
        image = adaptation.after_tokens(n, layer, image)
    transformer = decoder.transformer
    final = transformer.final_attn_token_to_image(q=queries + tokens, k=image + place, v=image)
    queries = transformer.norm_final_attn(queries + final)
    return queries, image.transpose(1, 2).reshape(batch, length, height, width)


def decode(
    decoder: MaskDecoder,
    embedding: Tensor,
    position: Tensor,
    sparse: Tensor,
    multimask: bool,
    adaptation: DecoderAdaptation,
) -> tuple[Tensor, Tensor]:
    """Logits (B, M, 4h, 4w), predicted IoU (B, M) of SAM's own mask head; M is 3 with `multimask`, else 1."""
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    queries, image = two_way(decoder, own, embedding, position, sparse, adaptation)
    chosen = slice(1, decoder.num_mask_tokens) if multimask else slice(0, 1)
    features = decoder.output_upscaling(image)
    mask_queries = queries[:, 1 : 1 + decoder.num_mask_tokens]
    weights = torch.stack(
        [hyper(mask_queries[:, n]) for n, hyper in enumerate(decoder.output_hypernetworks_mlps)], dim=1
    )
    batch, channels, height, width = features.shape
    logits = (weights @ features.view(batch, channels, height * width)).view(batch, -1, height, width)
    predicted = decoder.iou_prediction_head(queries[:, 0])
    return logits[:, chosen], predicted[:, chosen]


class AdaptedDecoder(nn.Module):
    """A mask decoder with its adapters, called as segment-anything's own, but image n sees its prompts only.

    It holds both, and copies neither.
    """

    def __init__(self, decoder: MaskDecoder, adaptation: DecoderAdaptation) -> None:
        super().__init__()
        self.decoder = decoder
        self.adaptation = adaptation

    def forward(
        self, embedding: Tensor, position: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, M, 4h, 4w) and predicted IoU (N, M).

        `embedding` (1 or N, C, h, w), `position` (1, C, h, w), `sparse` (N, P, C), `dense` (1 or N, C, h, w).
        """
        return decode(self.decoder, embedding + dense, position, sparse, multimask, self.adaptation)


class FoldedAdaptedDecoder(FoldedDecoder):
    """The folded decoder (see `medsa.sam.folded_decoder`) with adapters in its two-way blocks."""

    def __init__(self, adapted: AdaptedDecoder, position: Tensor, multimask: bool) -> None:
        super().__init__(adapted.decoder, position, multimask)
        self.adaptation = adapted.adaptation
        self.own_tokens: int = 1 + adapted.decoder.num_mask_tokens

    def two_way(
        self, n: int, block: Block, queries: Tensor, keys: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Block n as `two_way` above, with the image's projections folded into the tokens."""
        queries = attend_to_each_other(block, queries, tokens)
        placed = keys + self.image_pe
        heard = attend_to_image(block.cross_attn_token_to_image, queries + tokens, placed, keys)
        prompts = tokens[:, self.own_tokens :]
        queries = self.adaptation.after_image(n, block, queries, heard, prompts)
        attended = attend_to_tokens(block.cross_attn_image_to_token, placed, queries + tokens, queries)
        return queries, self.adaptation.after_tokens(n, block, keys + attended)
