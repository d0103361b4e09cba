"""A mask to begin with: one that was drawn or saved before is corrected instead of made anew."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from medsa.data.model_input import Frame, resize
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.prompts.prompt import Prompt
from medsa.segmenter.corrections import CONFIDENT
from medsa.segmenter.session import State


@dataclass(frozen=True, eq=False)
class Start:
    """`mask` (I, J, K) of one object on the image's grid. Nothing that no click changes is changed in it."""

    mask: NDArray[np.bool_]
    _states: dict[tuple[Frame, int, int], State] = field(default_factory=dict, repr=False)
    _seen: dict[Orientation, Start] = field(default_factory=dict, repr=False)

    def seen(self, orientation: Orientation) -> Start:
        """The same on the grid that is looked at; always the same object."""
        if orientation.as_stored:
            return self
        return self._seen.setdefault(orientation, Start(orientation.seen(self.mask)))

    @cached_property
    def digest(self) -> str:
        """Content hash: part of what a session remembers answers by."""
        return hashlib.blake2b(np.packbits(self.mask, axis=None).tobytes(), digest_size=16).hexdigest()

    @cached_property
    def slices(self) -> tuple[int, ...]:
        """The slices that hold something."""
        return tuple(np.flatnonzero(self.mask.any(axis=(0, 1))).tolist())

    def state(self, k: int, frame: Frame, cells: int) -> State:
        """Slice k as if a model with `cells` logits a side had answered it; always the same object."""
        key = frame, cells, k
        if key not in self._states:
            image = torch.from_numpy(np.ascontiguousarray(self.mask[:, :, k].T)).float()[None]
            share = resize(frame.pad(frame.image_to_model(image))[None], (cells, cells))[0, 0]
            self._states[key] = State((CONFIDENT * (2 * share - 1)).half(), 1.0)
        return self._states[key]

    def corrected(self, k: int, state: State, frame: Frame) -> NDArray[np.bool_]:
        """(I, J): the mask of slice k with what `state` changes in it."""
        before = self.mask[:, :, k]
        cells = state.logits.shape[-1]
        if state is self._states.get((frame, cells, k)):
            return before
        was, now = (
            frame.logits_to_voxel(known.logits.float()[None])[0].numpy().T > 0
            for known in (self.state(k, frame, cells), state)
        )
        return np.where(was == now, before, now)


def check_start(start: Start | None, volume: Volume, prompt: Prompt) -> None:
    """Raise `BadInputError` for a mask on another grid than `volume`'s, or one that a box is asked with."""
    if start is None:
        return
    if start.mask.shape != volume.shape:
        raise BadInputError("the mask to begin with lies on another grid than the image")
    if prompt.box is not None:
        raise BadInputError("a mask is corrected with clicks: a box would begin another object")
