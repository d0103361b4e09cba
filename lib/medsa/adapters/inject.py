"""Places a method's adapters around a frozen Sam: `adapt(sam, method) -> AdaptedSam`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsa.adapters.adapter_set import PLACES, AdapterSet, place_of
from medsa.adapters.decoder import AdaptedDecoder, DecoderAdaptation, FoldedAdaptedDecoder, two_way
from medsa.adapters.encoder import AdaptedEncoder
from medsa.adapters.method import DecoderAdapters, Method, read_method
from medsa.adapters.unet import UNetHead
from medsa.errors import ConfigurationError
from medsa.sam import Backbone, Sam
from medsa.sam.accelerate import (
    Compiled,
    compile_decoders,
    compile_encoder,
    compile_refiner,
    fitting,
    needs_gradient,
    state_of,
)
from medsa.sam.backbone import PromptKind
from medsa.sam.precision import autocast
from medsa.sam.promptable import decode_prompts
from medsa.sam.tiny_vit import TinyViT


class AdaptedSam(nn.Module):
    """A frozen `Sam` seen through a method's adapters; the base is shared and never changed.

    `adapters` holds what is the method's own. Any number of these may share one base, in several threads.
    `trained_prompts` are the prompts that were taught (none for a method without prompts) and `multimask`
    whether a single click was taught to give three masks to choose from: the base's, until whoever trains
    sets others. It stands wherever a `Sam` does (`medsa.sam.promptable`). Where a method leaves encoder or
    decoder alone, those of the base answer, compiled ones among them.
    """

    def __init__(self, sam: Sam, method: Method) -> None:
        super().__init__()
        self.method = method
        self.checkpointing = False
        self.trained_prompts: tuple[PromptKind, ...] = sam.config.trained_prompts if method.prompts else ()
        self.multimask = sam.multimask
        self.adapters = AdapterSet(sam, method)
        self._base = (sam,)  # in tuples: the base is shared, not a part of this module's state
        own, adapters = self.adapters.own, self.adapters
        encoder, decoder = (
            own[name] if name in own else getattr(sam, name) for name in ("image_encoder", "mask_decoder")
        )
        self._parts = (AdaptedEncoder(encoder, adapters.encoder), AdaptedDecoder(decoder, adapters.decoder))
        without = DecoderAdaptation(sam.config.decoder.width, DecoderAdapters(blocks=()))
        self._pairs = (AdaptedDecoder(sam.mask_decoder, without),)
        self.changes_encoder = "image_encoder" in own or _has_parameters(adapters.encoder)
        self.changes_decoder = (
            "mask_decoder" in own
            or "prompt_encoder" in own
            or _has_parameters(adapters.decoder)
            or adapters.names is not None
        )
        self._compiled: dict[str, Compiled] = {}
        self._digests: dict[str, tuple[object, str]] = {}
        self._about: tuple[int, ...] = ()
        self._enabled = True

    @property
    def base(self) -> Sam:
        """The frozen model, as `load_sam` made it."""
        return self._base[0]

    @property
    def config(self) -> Backbone:
        """The backbone's, with the prompts that this model was trained with."""
        return self.base.config.model_copy(update={"trained_prompts": self.trained_prompts})

    @property
    def digest(self) -> str:
        return self.base.digest

    @property
    def image_size(self) -> int:
        return self.base.image_size

    @property
    def embedding_size(self) -> int:
        return self.base.embedding_size

    @property
    def dense_pe(self) -> Tensor:
        return self.base.dense_pe

    @property
    def prompt_encoder(self) -> Any:
        own = self.adapters.own
        return (
            own["prompt_encoder"] if self._enabled and "prompt_encoder" in own else self.base.prompt_encoder
        )

    @property
    def mask_decoder(self) -> AdaptedDecoder:
        """What decodes: called as segment-anything's own, but pairs images with prompts."""
        return self._parts[1] if self._enabled else self._pairs[0]

    @property
    def adapter_digest(self) -> str:
        """sha256 of all that was learnt (writes through `.data` are not seen); "" when nothing can be.

        Another one where the model is told what is asked for.
        """
        parts = [self.adapters] if _has_parameters(self.adapters) else []
        settings = f"{self.method!r} {self.trained_prompts} {self.multimask} {self._about}"
        return self._digest(f"adapter {self._about}", parts, settings)

    @property
    def encoder_digest(self) -> str:
        """sha256 of what was learnt in the image encoder; "" where embeddings are the base's."""
        own = self.adapters.own
        parts = [self.adapters.encoder, *([own["image_encoder"]] if "image_encoder" in own else [])]
        return self._digest("encoder", parts if self.changes_encoder else [], repr(self.method.encoder))

    def _digest(self, name: str, parts: Sequence[nn.Module], settings: str) -> str:
        if not parts or not self._enabled:
            return ""
        state = [mark for part in parts for _, mark in state_of(part)]
        if name not in self._digests or self._digests[name][0] != state:
            digest = hashlib.sha256(settings.encode())
            for key, value in sorted(pair for part in parts for pair in part.state_dict().items()):
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().data)
            self._digests[name] = state, digest.hexdigest()
        return self._digests[name][1]

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings: images (B, 3, S, S) -> (B, C, h, w), slabs (B, D, 3, S, S) -> (B, D, C, h, w)."""
        depth = images.shape[1] if images.ndim == 5 else 1
        flat = images.flatten(0, 1) if images.ndim == 5 else images
        changed = self._enabled and self.changes_encoder
        out = self._encode(flat, depth) if changed else self.base.encode(flat)
        return out.unflatten(0, images.shape[:2]) if images.ndim == 5 else out

    def _encode(self, images: Tensor, depth: int) -> Tensor:
        encoder = self._parts[0]
        if needs_gradient([encoder], images):
            return encoder(images, depth, self.checkpointing)
        fast = fitting(self._compiled.get("encoder"), encoder, images) if depth == 1 else None
        if fast is not None:
            return torch.cat([fast(image)[0] for image in images.split(1)])
        fast_slabs = autocast(images.device) if depth > 1 and self.accelerated else nullcontext()
        with torch.no_grad(), fast_slabs:
            return encoder(images, depth).float()

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
        prompts = (points, point_labels, boxes, masks, multimask)
        changed = self._enabled and self.changes_decoder
        if not changed and (len(embedding) == 1 or not torch.is_grad_enabled()):
            return self.base.decode(embedding, *prompts)
        compiled = self._compiled.get("masks" if multimask else "mask") if changed else None
        return decode_prompts(self, compiled, embedding, *prompts, self.told)

    def about(self, labels: str | Sequence[str]) -> AdaptedSam:
        """This model when it is told what is asked for: a label, or one for each of N prompts.

        The two share everything. Labels that it has not learnt say nothing; neither does any to a method
        without `names`.
        """
        names = self.method.names or ()
        asked = (labels,) if isinstance(labels, str) else labels
        about = tuple(names.index(label) + 1 if label in names else 0 for label in asked)
        if not any(about) and not self._about:
            return self
        told = copy(self)
        told._compiled, told._about = self._compiled, about if any(about) else ()
        return told

    def learn_names(self, labels: Iterable[str]) -> nn.Parameter:
        """From now on these labels can be told, too; what is known of others stays, new ones say nothing.

        Returns what is to learn them, (N, C + C').
        """
        known, adapters = self.method.names or (), self.adapters
        names = tuple(dict.fromkeys((*known, *labels)))
        learnt = adapters.unnamed(self.config.decoder.width, len(names))
        learnt.data = learnt.data.to(self.dense_pe.device)
        if adapters.names is not None:
            learnt.data[: len(known)] = adapters.names.data
        adapters.names, self.changes_decoder = learnt, True
        self.method = self.method.model_copy(update={"names": names})
        return learnt

    @property
    def told(self) -> Tensor | None:
        """(N or 1, C): what the decoder's image is shifted by; None where nothing is told."""
        found = self._told
        return None if found is None else found[:, : self.config.decoder.width]

    @property
    def _told(self) -> Tensor | None:
        names = self.adapters.names
        if names is None or not self._about or not self._enabled:
            return None
        rows = torch.cat([names.new_zeros(1, names.shape[1]), names])
        return rows[list(self._about)]

    @property
    def refines(self) -> bool:
        """Whether `refine` may change anything."""
        return self.adapters.refiner is not None and self._enabled

    def refine(self, logits: Tensor, pictures: Tensor) -> Tensor:
        """Logits (N, M, c, c) after the method's refiner, as `Refiner`; where it has none, as they are."""
        refiner = self.adapters.refiner
        if refiner is None or not self._enabled:
            return logits
        found = self._told
        about = None if found is None else found[:, self.config.decoder.width :]
        wanted = needs_gradient([refiner], logits)
        fast = None if wanted else fitting(self._compiled.get("refiner"), refiner, logits)
        with torch.set_grad_enabled(wanted):
            if fast is None or logits.shape[1:] != (1, *2 * [4 * self.embedding_size]):
                return logits + refiner(logits, pictures, about)
            told = logits.new_zeros(1, sum(refiner.widths)) if about is None else about
            pictures = F.adaptive_avg_pool2d(pictures.float(), logits.shape[-1]).expand(-1, 3, -1, -1)
            return logits + fast(logits, pictures, told.expand(len(logits), -1))[0]

    def folded_decoder(self, position: Tensor, multimask: bool) -> nn.Module:
        """The mask decoder with its adapters, ready to be traced; as `Sam.folded_decoder`."""
        return FoldedAdaptedDecoder(self.mask_decoder, position, multimask)

    def accelerate(self) -> None:
        """Compile for the CPU what differs from the base; as `Sam.accelerate`, and safe beside requests."""
        encoder, decoder = self._parts
        found = compile_encoder(encoder, self.image_size) if self.changes_encoder else {}
        if self.changes_decoder:
            found |= compile_decoders(
                lambda multimask: FoldedAdaptedDecoder(decoder, self.dense_pe, multimask),
                self.dense_pe,
                watched=decoder,
            )
        if (refiner := self.adapters.refiner) is not None:
            found |= compile_refiner(refiner, 4 * self.embedding_size, sum(refiner.widths))
        self._compiled = found

    @property
    def accelerated(self) -> bool:
        """Whether `accelerate` has found something to compile, or all is the base's, which is."""
        changed = self.changes_encoder or self.changes_decoder
        return bool(self._compiled) if changed else self.base.accelerated

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}

    def segment(self, images: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Multi-class logits (D, classes, S, S) of a slab (D, 3, S, S) by the method's own head.

        S may be another than `image_size` where the model `takes_any_size`. `boxes` (D, 4) where it takes
        them. Raises `ValueError` for a method without such a head.
        """
        head = self.adapters.mask_head
        if head is None:
            raise ValueError(f"{self.method.name} has no multi-class head")
        if isinstance(head, UNetHead):
            return head(images)
        embedding = self.encode(images[None])[0]
        decoder = self.mask_decoder
        sparse, dense = self.prompt_encoder(points=None, boxes=boxes, masks=None)
        sparse = sparse.expand(embedding.shape[0], -1, -1)
        position, side = self.base.dense_pe, embedding.shape[-1]
        if side != position.shape[-1]:
            position = self.prompt_encoder.pe_layer((side, side))[None].detach()
        tokens, image = two_way(
            decoder.decoder,
            head.tokens.weight,
            embedding + dense[:, :, :1, :1],  # the same everywhere: no mask is shown
            position,
            sparse,
            decoder.adaptation,
        )
        return head(tokens[:, : head.tokens.num_embeddings], image, images)

    @property
    def takes_any_size(self) -> bool:
        """Whether images of half the side mean the same to it: TinyViT's weights hold no positions.

        A U-Net would take them, but what it has learnt is of a size.
        """
        alone = isinstance(self.adapters.mask_head, UNetHead)
        return isinstance(self.base.image_encoder, TinyViT) and not alone and self.embedding_size % 2 == 0

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
                yield place_of(name), name, parameter

    def kept_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of all that an adapter file holds: what learns, and what the method carries."""
        carried = tuple(f"own.{part}." for part in self.method.carries)
        for name, parameter in self.adapters.named_parameters():
            if parameter.requires_grad or name.startswith(carried):
                yield name, parameter

    def counts(self) -> dict[str, Any]:
        """`total`, `trained`, `trained_percent` and `parts`: trained parameters by place, all of `PLACES`."""
        parts = dict.fromkeys(PLACES, 0)
        for place, _, parameter in self.trained_parameters():
            parts[place] = parts.get(place, 0) + parameter.numel()
        copied = sum(p.numel() for n, p in self.adapters.named_parameters() if n.startswith("own."))
        added = sum(p.numel() for p in self.adapters.parameters()) - copied
        alone = isinstance(self.adapters.mask_head, UNetHead)
        total = added if alone else added + sum(p.numel() for p in self.base.parameters())
        trained = sum(parts.values())
        return {
            "total": total,
            "trained": trained,
            "trained_percent": 100 * trained / total,
            "parts": parts,
        }


def adapt(sam: Sam, method: str | Method, onto: AdaptedSam | None = None) -> AdaptedSam:
    """`sam` with a method's fresh adapters, which change nothing yet; raises `ConfigurationError`.

    With `onto`, an adapted model on `sam` whose method trains parts of the base only, they are placed on
    those parts as it has taught them: they start as that model. What the method does not train itself it
    then carries along, so that the outcome stands alone; a refiner and names go on learning. Raises
    `ConfigurationError` for another `onto`.
    """
    method = read_method(method) if isinstance(method, str) else method
    if onto is None:
        return AdaptedSam(sam, method)
    if not onto.method.only_parts:
        raise ConfigurationError(
            f"{method.name} cannot be placed on {onto.method.name}, which has adapters of its own: start "
            "from an adapter of decoder_prompt or decoder_only, or from the backbone"
        )
    taught = dict.fromkeys((*onto.method.trains, *onto.method.carries))
    refiner = onto.method.refiner or method.refiner
    model = AdaptedSam(sam, method.model_copy(update={"carries": tuple(taught), "refiner": refiner}))
    if model.adapters.refiner is not None and onto.adapters.refiner is not None:
        model.adapters.refiner.load_state_dict(onto.adapters.refiner.state_dict())
    _take_names(model, onto)
    for name, part in onto.adapters.own.items():
        model.adapters.own[name].load_state_dict(part.state_dict())
    return model


def _take_names(model: AdaptedSam, onto: AdaptedSam) -> None:
    """What `onto` knows of labels; to a refiner that it has not they say nothing yet."""
    known = onto.adapters.names
    if known is not None:
        learnt = model.learn_names(onto.method.names or ())
        width = min(known.shape[1], learnt.shape[1])
        learnt.data[: len(known), :width] = known.data[:, :width]


def gradient_count(model: AdaptedSam) -> int:
    """How many parameters really got a gradient in the last backward pass."""
    return sum(
        parameter.numel()
        for _, _, parameter in model.trained_parameters()
        if parameter.grad is not None and torch.any(parameter.grad != 0)
    )


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
