"""Segmentation without a prompt: a model that names every voxel of a slab at once (MA-SAM; a U-Net)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsa.adapters.inject import AdaptedSam
from medsa.data.model_input import Frame, slice_input
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.data.window import choose_window
from medsa.sam import Backbone
from medsa.segmenter.propagate import stop_if
from medsa.segmenter.slabs import Slab, slabs_with


class Classifier(Protocol):
    """Answers for each pixel which of its `labels` it is; class 0 is none of them.

    It takes slabs of `depth` slices as the encoder of `config` would, `image_size` pixels a side.
    """

    @property
    def config(self) -> Backbone: ...
    @property
    def image_size(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def takes_any_size(self) -> bool: ...

    def classify(self, images: Tensor) -> Tensor:
        """Logits (D, 1 + labels, S, S) of a slab (D, 3, S, S)."""


@dataclass(frozen=True)
class PromptlessSam:
    """An adapted model with a multi-class head, taught `labels` in this order."""

    model: AdaptedSam
    labels: tuple[str, ...]

    @property
    def config(self) -> Backbone:
        """The backbone."""
        return self.model.config

    @property
    def image_size(self) -> int:
        """Pixels of the input's side."""
        return self.model.image_size

    @property
    def depth(self) -> int:
        """Slices of a slab."""
        return self.model.method.depth

    @property
    def takes_any_size(self) -> bool:
        """Whether images of half the side are answered, too."""
        return self.model.takes_any_size

    def classify(self, images: Tensor) -> Tensor:
        """Logits (D, 1 + labels, S, S) of a slab (D, 3, S, S)."""
        return self.model.segment(images)


@dataclass(frozen=True)
class Classified:
    """`mask` (I, J, K) uint8: 0, or 1 + the label's place; `sure` 0..1 by label, 0 where it was not found."""

    mask: NDArray[np.uint8]
    sure: dict[str, float]


def classify_volume(
    classifier: Classifier,
    volume: Volume,
    slices: Iterable[int] | None = None,
    *,
    window: str = "auto",
    progress: Callable[[int, int], None] = lambda _done, _most: None,
    cancelled: Callable[[], bool] | None = None,
    turn: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Classified:
    """All labels of a volume, or of some of its slices, the others left empty.

    A slice that lies in several slabs gets the mean of what each says, as clicks do (`segmenter.slabs`).
    `progress(done, most)` counts slices; each slab is computed within a `turn()`. Raises `CancelledError`
    soon after `cancelled()`.
    """
    orientation = Orientation.of(volume)
    wanted = sorted({orientation.slice_of(k) for k in (range(volume.shape[2]) if slices is None else slices)})
    volume = orientation.volume(volume)
    frame = Frame.of(volume, classifier.config, classifier.image_size)
    chosen = choose_window(volume, window)
    mask = np.zeros(volume.shape, np.uint8, order="F")
    sums, counts = np.zeros(1 + len(classifier.labels)), np.zeros(1 + len(classifier.labels), int)
    seen: dict[Slab, Tensor] = {}
    for done, k in enumerate(wanted, start=1):
        stop_if(cancelled)
        parts = slabs_with(k, volume.shape[2], classifier.depth)
        for slab, _ in parts:
            if slab not in seen:
                images = [slice_input(volume, at, chosen, classifier.config, frame) for at in slab.slices]
                with turn(), torch.no_grad():
                    seen[slab] = classifier.classify(torch.cat(images)).softmax(dim=1)
        mixed = torch.stack([part * seen[slab][k - slab.first] for slab, part in parts]).sum(dim=0)
        likely = frame.logits_to_voxel(mixed).cpu().numpy().transpose(0, 2, 1)
        mask[:, :, k] = likely.argmax(axis=0)
        sums += np.bincount(mask[:, :, k].ravel(), likely.max(axis=0).ravel(), len(sums))
        counts += np.bincount(mask[:, :, k].ravel(), minlength=len(counts))
        seen = {slab: known for slab, known in seen.items() if slab.first + slab.length > k}
        progress(done, len(wanted))
    sure = (sums / counts.clip(min=1))[1:].tolist()
    return Classified(orientation.stored(mask), dict(zip(classifier.labels, sure, strict=True)))
