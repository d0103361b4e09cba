"""What a method adds to a frozen Sam: its adapters, and its copies of the parts of the base that learn."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import nn

from medsa.adapters.decoder import ClassHead, DecoderAdaptation
from medsa.adapters.encoder import EncoderAdaptation, transformer_blocks
from medsa.adapters.method import DecoderAdapters, Method
from medsa.adapters.refiner import Refiner
from medsa.adapters.unet import UNetHead
from medsa.sam import Sam

MASK_HEAD = (
    "output_upscaling",
    "output_hypernetworks_mlps",
    "iou_prediction_head",
    "mask_tokens",
    "iou_token",
)

PLACES = (
    "encoder_attention",
    "encoder_mlp",
    "encoder_depth",
    "encoder_global",
    "fact",
    "volumetric",
    "decoder",
    "mask_head",
    "refiner",
    "names",
)
"""Where adapters may be; `full` trains parts of the base besides."""


class AdapterSet(nn.Module):
    """What is a method's own: adapters by place, and under `own` its copies of the base's parts."""

    def __init__(self, sam: Sam, method: Method) -> None:
        super().__init__()
        length = sam.config.decoder.width
        self.encoder = EncoderAdaptation(transformer_blocks(sam.image_encoder), method.encoder)
        self.decoder = DecoderAdaptation(length, method.decoder or DecoderAdapters(blocks=()))
        self.mask_head: ClassHead | UNetHead | None = None
        if method.head and method.head.kind == "unet":
            self.mask_head = UNetHead(method.head.classes)
        elif method.head:
            steps = round(math.log2(sam.image_size / sam.embedding_size))
            self.mask_head = ClassHead(method.head, length, steps)
        self.refiner = Refiner(**method.refiner.model_dump()) if method.refiner else None
        told = None if method.names is None else self.unnamed(length, len(method.names))
        self.names: nn.Parameter | None
        self.register_parameter("names", told)
        copied = dict.fromkeys(part.split(".")[0] for part in (*method.trains, *method.carries))
        self.own = nn.ModuleDict(
            {name: deepcopy(getattr(sam, name)).requires_grad_(False) for name in copied}
        )
        for part in method.trains:
            self.own.get_submodule(part).requires_grad_(True)

    def unnamed(self, length: int, count: int) -> nn.Parameter:
        """(`count`, C + C'), what labels add to the decoder's image, and then to the refiner: nothing yet."""
        return nn.Parameter(torch.zeros(count, length + (sum(self.refiner.widths) if self.refiner else 0)))

    def train(self, mode: bool = True) -> AdapterSet:
        """Copies of the base stay in eval mode: their batch statistics are the base's."""
        super().train(mode)
        self.own.eval()
        return self


def place_of(name: str) -> str:
    """The one of `PLACES` that a parameter of an `AdapterSet` belongs to, or the trained part of the base."""
    first, *further = name.split(".")
    if first == "encoder":
        return further[0]
    if first != "own":
        return first
    if further[0] == "mask_decoder":
        return "mask_head" if further[1] in MASK_HEAD else "decoder"
    return further[0]
