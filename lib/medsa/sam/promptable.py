"""What the runtime asks of a model: a `Sam`, or one that is seen through adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medsa.sam.accelerate import Compiled, fitting, needs_gradient
from medsa.sam.backbone import Backbone

BATCH = 8  # prompts decoded at a time: bounds memory to about 25 MiB each


class Promptable(Protocol):
    """A model that encodes an image once and decodes many prompts on it.

    `config.trained_prompts` are the prompts this model learnt, `multimask` tells whether a single click is
    to be answered with three masks to choose from. `digest` is that of the backbone's weights,
    `adapter_digest` that of all that was learnt on top and `encoder_digest` of its part in an embedding; both
    are "" where there is nothing.
    """

    @property
    def config(self) -> Backbone: ...
    @property
    def digest(self) -> str: ...
    @property
    def adapter_digest(self) -> str: ...
    @property
    def encoder_digest(self) -> str: ...
    @property
    def multimask(self) -> bool: ...
    @property
    def image_size(self) -> int: ...
    @property
    def embedding_size(self) -> int: ...
    @property
    def dense_pe(self) -> Tensor: ...
    @property
    def prompt_encoder(self) -> Any: ...
    @property
    def mask_decoder(self) -> Any: ...
    @property
    def accelerated(self) -> bool: ...

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings (B, C, h, w) of images (B, 3, S, S)."""
        ...

    def decode(
        self,
        embedding: Tensor,
        points: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Logits and predicted IoU of N prompts, as `Sam.decode`: on one image, or each on its own."""
        ...

    def about(self, labels: str | Sequence[str]) -> Promptable:
        """The model when it is told what is asked for: a label, or one for each of N prompts."""
        ...

    def refine(self, logits: Tensor, pictures: Tensor) -> Tensor:
        """Logits (N, M, c, c) on pictures (N, 1 or 3, s, s), 0..1, after what was taught to mend edges."""
        ...

    def folded_decoder(self, position: Tensor, multimask: bool) -> nn.Module:
        """The mask decoder rearranged for tracing; raises `TypeError` where that is not possible."""
        ...

    def accelerate(self) -> None:
        """Compile what can be compiled for this CPU."""
        ...


def decode_prompts(
    model: Promptable,
    compiled: Compiled | None,
    embedding: Tensor,
    points: Tensor | None,
    point_labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
    multimask: bool,
    told: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`Sam.decode` for any model, with the `compiled` decoder where it fits and no gradient is wanted.

    Where each of N images has its own prompt, the dense prompts carry the images: the decoder adds the two.
    `told` (N or 1, C) is added to the dense prompts.
    """
    prompts = [value for value in (points, boxes, masks, told) if value is not None]
    labelled = None if points is None or point_labels is None else (points, point_labels)
    prompt_encoder, decoder = model.prompt_encoder, model.mask_decoder
    wanted = needs_gradient([prompt_encoder, decoder], embedding, *prompts)
    with torch.set_grad_enabled(wanted):
        sparse, dense = prompt_encoder(points=labelled, boxes=boxes, masks=masks)
        if told is not None:
            dense = dense + told[:, :, None, None]
        own = len(embedding) > 1 and not wanted
        if own:
            embedding, dense = torch.zeros_like(embedding[:1]), embedding + dense
        fast = None if wanted else fitting(compiled, decoder, embedding)
        if fast is None:
            return decoder(embedding, model.dense_pe, sparse, dense, multimask)
    if masks is None and not own:
        dense = dense[: 1 if told is None else len(told), :, :1, :1]
    shared = len(dense) == 1
    parts = [
        fast(embedding, dense if shared else dense[i : i + BATCH], sparse[i : i + BATCH])
        for i in range(0, len(sparse), BATCH)
    ]
    logits, scores = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(scores)
