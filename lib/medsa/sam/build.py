"""The frozen foundation model: image encoder, prompt encoder and mask decoder of one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from medsa.sam.accelerate import Compiled, compile_decoders, compile_encoder, fitting, needs_gradient
from medsa.sam.attention import FoldedAttention
from medsa.sam.backbone import Backbone, TinyViTArchitecture, read_backbone
from medsa.sam.folded_decoder import FoldedDecoder
from medsa.sam.promptable import decode_prompts
from medsa.sam.tiny_vit import TinyViT
from medsa.sam.weights import read_weights


class Sam(nn.Module):
    """Segment Anything for one backbone; built by `build_sam` or `load_sam`.

    `digest` is the sha256 of the weights file ("" for random weights), `image_size` the side S of the input
    in pixels, `embedding_size` the side h = w of the embedding.
    """

    dense_pe: Tensor
    adapter_digest = encoder_digest = ""  # nothing was learnt on top: see `Promptable`
    multimask = True

    def __init__(self, config: Backbone, image_size: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.digest = ""
        self.image_size = image_size or config.image_size
        self.embedding_size = config.embedding_size(self.image_size)
        grid = (self.embedding_size, self.embedding_size)
        decoder = config.decoder
        self.image_encoder = _image_encoder(config, self.image_size)
        self.prompt_encoder = PromptEncoder(
            decoder.width, grid, (self.image_size, self.image_size), mask_in_chans=16
        )
        self.mask_decoder = MaskDecoder(
            transformer_dim=decoder.width,
            transformer=TwoWayTransformer(decoder.depth, decoder.width, decoder.heads, decoder.mlp),
        )
        self.register_buffer("dense_pe", None, persistent=False)
        self._compiled: dict[str, Compiled] = {}

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) of images (B, 3, S, S), float32, already normalised."""
        if needs_gradient([self.image_encoder], images):
            return self.image_encoder(images)
        if fast := fitting(self._compiled.get("encoder"), self.image_encoder, images):
            return torch.cat([fast(image)[0] for image in images.split(1)])
        with torch.no_grad():
            return self.image_encoder(images)

    def decode(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Masks of N prompts: logits (N, M, 4h, 4w), object above 0, and predicted IoU (N, M).

        `embedding` (1, C, h, w), or (N, C, h, w) where each prompt has an image of its own. `points`
        (N, P, 2) as (x, y) in model pixels with `point_labels` (N, P): 1 on the object, 0 beside it, -1 no
        point (padding). `boxes` (N, 4) as (x0, y0, x1, y1) in model pixels. `masks` (N or 1, 1, 4h, 4w):
        logits of an earlier round. M is 3 with `multimask`, else 1.
        """
        compiled = self._compiled.get("masks" if multimask else "mask")
        return decode_prompts(self, compiled, embedding, points, point_labels, boxes, masks, multimask)

    def about(self, labels: str | Sequence[str]) -> Sam:  # noqa: ARG002 - as adapted models have it
        """This model: it knows no labels."""
        return self

    def refine(self, logits: Tensor, pictures: Tensor) -> Tensor:  # noqa: ARG002 - as adapted models have it
        """`logits` as they are: the base has nothing that mends them."""
        return logits

    def folded_decoder(self, position: Tensor, multimask: bool) -> nn.Module:
        """The mask decoder for embeddings of the grid of `position` (1, C, h, w), ready to be traced.

        Called with embedding (1, C, h, w), dense (1 or N, C, h, w) or (1, C, 1, 1), sparse (N, P, C). Raises
        `TypeError` when the decoder is not segment_anything's own.
        """
        return FoldedDecoder(self.mask_decoder, position, multimask)

    def accelerate(self) -> None:
        """Compile encoder and decoder for the CPU; `encode` and `decode` use them while they fit the modules.

        They are used for CPU tensors without gradients, until a weight or a block of the model is changed or
        replaced; call it again after that. Where it is not possible, all stays as it is.
        """
        encoder = compile_encoder(self.image_encoder, self.image_size)
        self._compiled = encoder | compile_decoders(
            lambda multimask: self.folded_decoder(self.dense_pe, multimask),
            self.dense_pe,
            watched=self.mask_decoder,
        )

    @property
    def accelerated(self) -> bool:
        """Whether `accelerate` has found something to compile."""
        return bool(self._compiled)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}


def _image_encoder(config: Backbone, image_size: int) -> nn.Module:
    architecture = config.architecture
    if isinstance(architecture, TinyViTArchitecture):
        return TinyViT(
            architecture.patch,
            architecture.widths,
            architecture.depths,
            architecture.heads,
            architecture.windows,
            config.decoder.width,
        )
    encoder = ImageEncoderViT(
        img_size=image_size,
        patch_size=architecture.stride,
        embed_dim=architecture.width,
        depth=architecture.depth,
        num_heads=architecture.heads,
        global_attn_indexes=architecture.global_blocks,
        window_size=architecture.window,
        out_chans=config.decoder.width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
    )
    for block in encoder.blocks:
        side = block.window_size or image_size // architecture.stride
        block.attn = FoldedAttention(
            architecture.width, architecture.heads, use_rel_pos=True, input_size=(side, side)
        )
    return encoder


def build_sam(backbone: str | Backbone, *, image_size: int | None = None) -> Sam:
    """A `Sam` with random weights, frozen and in eval mode."""
    config = read_backbone(backbone) if isinstance(backbone, str) else backbone
    return _freeze(Sam(config, image_size))


def load_sam(
    backbone: str | Backbone,
    *,
    device: str | torch.device = "cpu",
    weights: Path | None = None,
    image_size: int | None = None,
    accelerate: bool = True,
) -> Sam:
    """The pretrained `Sam` of a backbone on `device`: frozen, in eval mode.

    `weights` is a checkpoint file of one's own; otherwise they are found in the cache or a package, or
    downloaded (see `weights.read_weights`). `image_size` overrides the input's side by another multiple of
    16; positional embeddings are interpolated. On a CPU `Sam.accelerate` is called unless `accelerate` is
    False. Raises `ConfigurationError`, `WeightsError`.
    """
    config = read_backbone(backbone) if isinstance(backbone, str) else backbone
    with torch.device("meta"):
        sam = Sam(config, image_size)
        expected = sam if sam.image_size == config.image_size else Sam(config)
    tensors, digest = read_weights(config, expected.state_dict(), weights)
    if expected is not sam:
        tensors = {name: _resample(value, sam.state_dict()[name].shape) for name, value in tensors.items()}
    sam.load_state_dict(tensors, assign=True)
    sam.digest = digest
    _freeze(sam).to(device)
    if accelerate and torch.device(device).type == "cpu":
        sam.accelerate()
    return sam


def _resample(table: Tensor, shape: torch.Size) -> Tensor:
    """Positions (1, h, w, C), bicubic, or relative positions (2h - 1, c), linear, for another grid."""
    if table.shape == shape:
        return table
    if table.ndim == 4:
        grid = table.permute(0, 3, 1, 2)
        size = (shape[1], shape[2])
        return F.interpolate(grid, size, mode="bicubic", antialias=True).permute(0, 2, 3, 1).contiguous()
    return F.interpolate(table.T[None], shape[0], mode="linear")[0].T.contiguous()


def _freeze(sam: Sam) -> Sam:
    sam.dense_pe = sam.prompt_encoder.get_dense_pe()
    return sam.eval().requires_grad_(False)
