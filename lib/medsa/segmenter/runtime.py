"""The runtime: a volume and a prompt in voxels become a mask on the volume's own grid."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsa.data.model_input import Frame, slice_input
from medsa.data.volume import Volume
from medsa.data.window import Window, choose_window
from medsa.errors import BadInputError
from medsa.prompts.prompt import Prompt
from medsa.sam import Sam
from medsa.segmenter.cache import ContentCache
from medsa.segmenter.session import Session, SlicePrompt
from medsa.segmenter.slices import Slice, decode


@dataclass(frozen=True)
class Result:
    """A mask and how it came about.

    `mask` (I, J, K) uint8 0/1 on the volume's grid, Fortran order; `slices` the k that were computed;
    `score` predicted IoU, `scores` the same for each slice of a volume; `timings` milliseconds of encode,
    decode and total; `options` what was used (window, backbone); `cached` True when nothing had to be encoded;
    `warnings` sentences for the user.
    """

    mask: NDArray[np.uint8]
    slices: tuple[int, ...]
    score: float
    scores: dict[int, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    warnings: tuple[str, ...] = ()


class Turns:
    """A lock that serves its waiters in the order they came, so that a long job lets clicks in between."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._next = self._served = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for one's turn, hold it, hand it on."""
        with self._condition:
            mine = self._next
            self._next += 1
            self._condition.wait_for(lambda: self._served == mine)
        try:
            yield
        finally:
            with self._condition:
                self._served += 1
                self._condition.notify_all()


class Segmenter:
    """One backbone for all users: it holds embeddings and nothing of any request. Safe to share between threads.

    Encoder and decoder have a lock each: a click on an encoded slice does not wait for another slice's encoder.
    """

    def __init__(self, sam: Sam, cache_mb: int = 512, adapter_digest: str = "") -> None:
        self.sam = sam
        self.cache: ContentCache[torch.Tensor] = ContentCache(cache_mb * 2**20)
        self.adapter_digest = adapter_digest
        self._encoder, self._decoder = Turns(), Turns()
        self._windows: WeakKeyDictionary[Volume, dict[str, Window]] = WeakKeyDictionary()

    def segment_slice(
        self, volume: Volume, prompt: Prompt, k: int, *, window: str = "auto", session: Session | None = None
    ) -> Result:
        """The object that the prompts on slice k mean; those on other slices are left out.

        With a `session`, further clicks refine the mask of the clicks before them. Raises `BadInputError` when
        slice k or a prompt lies outside, or when no prompt on slice k says where the object is.
        """
        started = time.perf_counter()
        prompt.check_inside(volume.shape)
        if not 0 <= k < volume.shape[2]:
            raise BadInputError(f"slice {k} lies outside the image: it has slices 0 to {volume.shape[2] - 1}")
        frame = Frame.of(volume, self.sam.config, self.sam.image_size)
        slice_prompt = prompt_on_slice(prompt, k, frame)
        if not slice_prompt.foreground and slice_prompt.box is None:
            raise BadInputError(
                f"nothing says where the object is on slice {k}: click on it or draw a box around it"
            )
        chosen = self.window(volume, window)
        timings = {"encode": 0.0, "decode": 0.0}

        key, where, cached = self._encoded(volume, k, chosen, frame, timings)
        known = session.recall(key, slice_prompt) if session is not None else None
        if known is not None and known[0] == slice_prompt:
            state = known[1]
        else:
            with self._decoder.turn(), torch.inference_mode(), stopwatch(timings, "decode"):
                state = decode(self.sam, where, slice_prompt, known[1] if known else None)
            if session is not None:
                session.remember(key, slice_prompt, state)

        mask = np.zeros(volume.shape, np.uint8, order="F")
        mask[:, :, k] = slice_mask(state.logits.float(), slice_prompt, frame)
        timings["total"] = 1e3 * (time.perf_counter() - started)
        return Result(
            mask,
            (k,),
            state.score,
            {k: state.score},
            timings,
            {"window": str(chosen), "backbone": self.sam.config.name},
            cached,
            () if mask[:, :, k].any() else ("the model found no object here: click elsewhere or draw a box",),
        )

    def window(self, volume: Volume, spec: str) -> Window:
        """The window `spec` means for `volume`, looked up once."""
        windows = self._windows.setdefault(volume, {})
        if spec not in windows:
            windows[spec] = choose_window(volume, spec)
        return windows[spec]

    def _encoded(
        self, volume: Volume, k: int, window: Window, frame: Frame, timings: dict[str, float]
    ) -> tuple[tuple, Slice, bool]:
        slab = (k, 1)

        def encode() -> torch.Tensor:
            with self._encoder.turn(), torch.inference_mode(), stopwatch(timings, "encode"):
                return self.sam.encode(slice_input(volume, k, window, self.sam.config, frame))

        key = (
            volume.slice_digest(k),
            (window.low, window.high),
            slab[1],
            self.sam.digest,
            self.adapter_digest,
            self.sam.image_size,
        )
        embedding, cached = self.cache.get(key, encode)
        return key, Slice(embedding, frame), cached


@contextmanager
def stopwatch(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the milliseconds spent inside to `timings[name]`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = timings.get(name, 0.0) + 1e3 * (time.perf_counter() - started)


def prompt_on_slice(prompt: Prompt, k: int, frame: Frame) -> SlicePrompt:
    """The prompts of slice k in model pixels, in their order."""

    def points(values: NDArray[np.float64]) -> tuple[tuple[float, float], ...]:
        here = values[np.rint(values[:, 2]) == k, :2]
        return tuple((float(x), float(y)) for x, y in frame.points_to_model(here))

    box = None
    if prompt.box is not None and prompt.box[0, 2] <= k <= prompt.box[1, 2]:
        x0, y0, x1, y1 = frame.boxes_to_model(prompt.box[:, :2].reshape(4))
        box = (float(x0), float(y0), float(x1), float(y1))
    return SlicePrompt(points(prompt.foreground), points(prompt.background), box)


def slice_mask(logits: torch.Tensor, prompt: SlicePrompt, frame: Frame) -> NDArray[np.bool_]:
    """(h, w) logits -> (I, J) mask; without a box only the parts that hold a foreground click are kept."""
    mask = (frame.logits_to_voxel(logits[None])[0] > 0).numpy().T
    if prompt.box is not None or not prompt.foreground:
        return mask
    parts, count = ndimage.label(mask)
    i, j = np.rint(frame.points_to_voxel(np.array(prompt.foreground))).astype(int).T
    clicked = set(parts[i.clip(0, frame.width - 1), j.clip(0, frame.height - 1)]) - {0}
    return mask if count <= 1 or not clicked else np.isin(parts, sorted(clicked))
