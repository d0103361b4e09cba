"""Places a method's adapters around a frozen Sam: `adapt(sam, method) -> AdaptedSam`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from medsa.adapters.decoder import ClassHead, DecoderAdaptation, decode, two_way
from medsa.adapters.encoder import EncoderAdaptation, encode, transformer_blocks
from medsa.adapters.method import Method, read_method
from medsa.sam import Sam

MASK_HEAD = (
    "output_upscaling",
    "output_hypernetworks_mlps",
    "iou_prediction_head",
    "mask_tokens",
    "iou_token",
)


class AdapterSet(nn.Module):
    """What is a method's own: adapters by place, and under `own` copies of the base that it trains."""

    def __init__(self, sam: Sam, method: Method) -> None:
        super().__init__()
        length = sam.config.decoder.width
        self.encoder = EncoderAdaptation(transformer_blocks(sam.image_encoder), method.encoder)
        self.decoder = DecoderAdaptation(length, method.decoder) if method.decoder else None
        self.mask_head: ClassHead | None = None
        if method.head:
            steps = round(math.log2(sam.image_size / sam.embedding_size))
            self.mask_head = ClassHead(method.head, length, steps)
        copied = dict.fromkeys(part.split(".")[0] for part in method.trains)
        self.own = nn.ModuleDict(
            {name: deepcopy(getattr(sam, name)).requires_grad_(False) for name in copied}
        )
        for part in method.trains:
            self.own.get_submodule(part).requires_grad_(True)


class AdaptedSam(nn.Module):
    """A frozen `Sam` seen through a method's adapters; the base is shared and never changed.

    `adapters` holds what is the method's own. Any number of these may share one base.
    """

    def __init__(self, sam: Sam, method: Method) -> None:
        super().__init__()
        self.method = method
        self.checkpointing = False
        self.adapters = AdapterSet(sam, method)
        self._base = (sam,)  # in a tuple: the base is shared, not a part of this module's state
        self._enabled = True

    @property
    def base(self) -> Sam:
        """The frozen model, as `load_sam` made it."""
        return self._base[0]

    def _part(self, name: str) -> Any:
        own = self.adapters.own
        return own[name] if self._enabled and name in own else getattr(self.base, name)

    def _decoder_adapters(self) -> DecoderAdaptation | None:
        return self.adapters.decoder if self._enabled else None

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings: images (B, 3, S, S) -> (B, C, h, w), slabs (B, D, 3, S, S) -> (B, D, C, h, w)."""
        depth = images.shape[1] if images.ndim == 5 else 1
        flat = images.flatten(0, 1) if images.ndim == 5 else images
        run = self.adapters.encoder.run_block if self._enabled else _plain
        out = encode(self._part("image_encoder"), flat, depth, run, self.checkpointing)
        return out.unflatten(0, images.shape[:2]) if images.ndim == 5 else out

    def decode(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, M, 4h, 4w) and predicted IoU (N, M); arguments as `Sam.decode`.

        `embedding` (1, C, h, w) for N prompts on one image, or (N, C, h, w) for a prompt on each of N images.
        """
        labelled = None if points is None or point_labels is None else (points, point_labels)
        sparse, dense = self._part("prompt_encoder")(points=labelled, boxes=boxes, masks=masks)
        decoder = self._part("mask_decoder")
        position, adapters = self.base.dense_pe, self._decoder_adapters()
        return decode(decoder, embedding + dense, position, sparse, multimask, adapters)

    def segment(self, images: Tensor, embedding: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Multi-class logits (B, classes, S, S) of the method's own head; `boxes` (B, 4) where it takes them.

        Raises `ValueError` for a method without such a head.
        """
        head = self.adapters.mask_head
        if head is None:
            raise ValueError(f"{self.method.name} has no multi-class head")
        decoder = self._part("mask_decoder")
        sparse, dense = self._part("prompt_encoder")(points=None, boxes=boxes, masks=None)
        sparse = sparse.expand(embedding.shape[0], -1, -1)
        tokens, image = two_way(
            decoder,
            head.tokens.weight,
            embedding + dense,
            self.base.dense_pe,
            sparse,
            self._decoder_adapters(),
        )
        return head(tokens[:, : head.tokens.num_embeddings], image, images)

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within it the model is the base, bit for bit."""
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True

    def trained_parameters(self) -> Iterator[tuple[str, str, nn.Parameter]]:
        """(place, name, parameter) of everything that learns; place is a key of `counts()["parts"]`."""
        for name, parameter in self.adapters.named_parameters():
            if parameter.requires_grad:
                yield _place(name), name, parameter

    def counts(self) -> dict[str, object]:
        """`total`, `trained`, `trained_percent` and `parts`: parameters by place."""
        parts: Counter[str] = Counter()
        for place, _, parameter in self.trained_parameters():
            parts[place] += parameter.numel()
        copied = sum(p.numel() for n, p in self.adapters.named_parameters() if n.startswith("own."))
        added = sum(p.numel() for p in self.adapters.parameters()) - copied
        total = sum(p.numel() for p in self.base.parameters()) + added
        trained = sum(parts.values())
        return {
            "total": total,
            "trained": trained,
            "trained_percent": 100 * trained / total,
            "parts": dict(sorted(parts.items())),
        }


def adapt(sam: Sam, method: str | Method) -> AdaptedSam:
    """`sam` with a method's fresh adapters, which change nothing yet; raises `ConfigurationError`."""
    return AdaptedSam(sam, read_method(method) if isinstance(method, str) else method)


def gradient_count(model: AdaptedSam) -> int:
    """How many parameters really got a gradient in the last backward pass."""
    return sum(
        parameter.numel()
        for _, _, parameter in model.trained_parameters()
        if parameter.grad is not None and torch.any(parameter.grad != 0)
    )


def _plain(_n: int, block: nn.Module, x: Tensor, _depth: int) -> Tensor:
    return block(x)


def _place(name: str) -> str:
    first, second, third, *_ = name.split(".")
    if first == "encoder":
        return second
    if first != "own":
        return first
    if second == "mask_decoder":
        return "mask_head" if third in MASK_HEAD else "decoder"
    return second
