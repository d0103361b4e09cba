"""Walks SAM's mask decoder layer by layer, each image with its own prompts, and adds the adapters."""

from __future__ import annotations

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn

from medsa.adapters.bottleneck import Adapter
from medsa.adapters.hyper_prompt import CONDITIONING
from medsa.adapters.method import DecoderAdapters, MaskHead
from medsa.adapters.upsampling import MultiScaleFusion, ProgressiveUpsampling


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
    adaptation: DecoderAdaptation | None = None,
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
        key = str(n)
        adapters = adaptation if adaptation is not None and key in adaptation.prompted else None
        if layer.skip_first_layer_pe:
            queries = layer.self_attn(q=queries, k=queries, v=queries)
        else:
            q = queries + tokens
            queries = queries + layer.self_attn(q=q, k=q, v=queries)
        queries = layer.norm1(queries)
        heard = layer.cross_attn_token_to_image(q=queries + tokens, k=image + place, v=image)
        if adapters is not None:
            heard = heard + adapters.prompted[key](heard, sparse)
        queries = layer.norm2(queries + heard)
        out = queries + layer.mlp(queries)
        if adapters is not None:
            out = out + adapters.scale * adapters.mlp[key](queries)
        queries = layer.norm3(out)
        image = image + layer.cross_attn_image_to_token(q=image + place, k=queries + tokens, v=queries)
        if adapters is not None:
            image = image + adapters.image[key](image)
        image = layer.norm4(image)
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
    adaptation: DecoderAdaptation | None = None,
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
