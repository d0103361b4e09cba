"""The runtime: a volume and a prompt in voxels become a mask on the volume's own grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medsa.data.model_input import Frame, picture_of, slice_input, slice_pixels
from medsa.data.volume import Volume
from medsa.data.window import Window, choose_window
from medsa.errors import BadInputError, ConfigurationError
from medsa.prompts.prompt import Prompt
from medsa.sam import Promptable
from medsa.segmenter.cache import ContentCache
from medsa.segmenter.propagate import Tones, follow_through, same_object, stop_if, tones_of
from medsa.segmenter.session import Point, Session, SlicePrompt, State
from medsa.segmenter.slices import Encoded, SliceDecoder, goes_on
from medsa.segmenter.turns import Turns


@dataclass(frozen=True)
class Result:
    """A mask and how it came about.

    `mask` (I, J, K) uint8 0/1 on the volume's grid, Fortran order; `slices` the k that hold or were asked for
    the object; `score` predicted IoU, the mean of `scores` over the slices; `timings` milliseconds of encode,
    decode and total; `options` what was used (window, backbone); `cached` True when nothing had to be
    encoded; `warnings` sentences for the user.
    """

    mask: NDArray[np.uint8]
    slices: tuple[int, ...]
    score: float
    scores: dict[int, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    warnings: tuple[str, ...] = ()


class Segmenter:
    """One model for all users: it holds embeddings and nothing of any request; threads may share it.

    Encoder and decoder have a lock each: a click on an encoded slice does not wait while another slice is
    being encoded, and a volume lets others in after each of its slices. Raises `ConfigurationError` for a
    model that takes no prompts.
    """

    def __init__(self, sam: Promptable, cache_mb: int = 512) -> None:
        self.sam = sam
        self.decoder = _decoder_of(sam)
        self.cache: ContentCache[Encoded] = ContentCache(cache_mb * 2**20)
        self._encoder, self._decoder = Turns(), Turns()
        self._windows: WeakKeyDictionary[Volume, dict[str, Window]] = WeakKeyDictionary()

    def beside(self, sam: Promptable) -> Segmenter:
        """A segmenter for another model on the same base: they share embeddings, memory and locks.

        Embeddings of models whose encoders compute the same are the same entries of the cache.
        """
        other = copy(self)
        other.sam, other.decoder = sam, _decoder_of(sam)
        return other

    def accelerate(self) -> None:
        """Compile the model for this CPU; requests are served meanwhile, and faster from then on."""
        self.sam.accelerate()
        self.decoder = SliceDecoder(self.sam)

    def segment_slice(
        self,
        volume: Volume,
        prompt: Prompt,
        k: int,
        *,
        window: str = "auto",
        session: Session | None = None,
    ) -> Result:
        """The object that the prompts on slice k mean; those on other slices are left out.

        With a `session`, further clicks refine the mask of the clicks before them. Raises `BadInputError`
        when slice k or a prompt lies outside, or when no prompt on slice k says where the object is.
        """
        request = _Request(self, volume, prompt, window, session)
        if not 0 <= k < volume.shape[2]:
            raise BadInputError(
                f"slice {k} lies outside the image: its slices are 0 to {volume.shape[2] - 1}"
            )
        if not request.locates(k):
            raise BadInputError(
                f"nothing says where the object is on slice {k}: click on it or draw a box around it"
            )
        return request.result({k: request.answer(k)})

    def segment_volume(
        self,
        volume: Volume,
        prompt: Prompt,
        *,
        window: str = "auto",
        session: Session | None = None,
        progress: Callable[[int, int], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """The object through the volume: from every prompted slice outwards, each slice led by its neighbour.

        A box that spans slices bounds the object and starts in its middle, unless clicks inside say where
        else. `progress(done, most)` counts slices. Raises `BadInputError` like `segment_slice`, and
        `CancelledError` soon after `cancelled()` turns true.
        """
        request = _Request(self, volume, prompt, window, session)
        starts = request.starts()
        if not starts:
            raise BadInputError("nothing says where the object is: click on it or draw a box around it")
        anchors: dict[int, State] = {}
        for k in starts:
            stop_if(cancelled)
            anchors[k] = request.answer(k)
            request.look_at(k, anchors[k])
        found = follow_through(
            anchors, request.bounds(), request.follow, progress=progress, cancelled=cancelled
        )
        return request.result(found)

    def window(self, volume: Volume, spec: str) -> Window:
        """The window `spec` means for `volume`, looked up once."""
        windows = self._windows.setdefault(volume, {})
        if spec not in windows:
            windows[spec] = choose_window(volume, spec)
        return windows[spec]


def _decoder_of(sam: Promptable) -> SliceDecoder:
    if not sam.config.trained_prompts:
        raise ConfigurationError(
            "this model takes no clicks and no boxes: it segments all its classes at once, unasked"
        )
    return SliceDecoder(sam)


class _Request:
    """One request on its way: its volume, prompts and clock; gone when it is answered."""

    def __init__(
        self, segmenter: Segmenter, volume: Volume, prompt: Prompt, window: str, session: Session | None
    ) -> None:
        self.started = time.perf_counter()
        prompt.check_inside(volume.shape)
        self.segmenter, self.volume, self.prompt, self.session = segmenter, volume, prompt, session
        self.window = segmenter.window(volume, window)
        self.frame = Frame.of(volume, segmenter.sam.config, segmenter.sam.image_size)
        self.timings = {"encode": 0.0, "decode": 0.0}
        self._tones: dict[int, Tones | None] = {}

    def on_slice(self, k: int) -> SlicePrompt:
        """The prompts of slice k in model pixels, in their order."""

        def points(values: NDArray[np.float64]) -> tuple[Point, ...]:
            here = self.frame.points_to_model(values[np.rint(values[:, 2]) == k, :2])
            return tuple((float(x), float(y)) for x, y in here)

        box = None
        if self.prompt.box is not None and self.prompt.box[0, 2] <= k <= self.prompt.box[1, 2]:
            x0, y0, x1, y1 = map(float, self.frame.boxes_to_model(self.prompt.box[:, :2].reshape(4)))
            box = (x0, y0, x1, y1)
        return SlicePrompt(points(self.prompt.foreground), points(self.prompt.background), box)

    def locates(self, k: int) -> bool:
        """True when a prompt of slice k says where the object is."""
        prompt = self.on_slice(k)
        return bool(prompt.foreground) or prompt.box is not None

    def bounds(self) -> tuple[int, int]:
        """First and last slice that the object may reach: those of a box that spans several, else all."""
        last = self.volume.shape[2] - 1
        box = self.prompt.box
        if box is None or box[0, 2] == box[1, 2]:
            return 0, last
        low, high = np.rint(box[:, 2]).clip(0, last).astype(int)
        clicked = np.rint(self.prompt.foreground[:, 2]).astype(int)
        return int(min([low, *clicked])), int(max([high, *clicked]))

    def starts(self) -> list[int]:
        """The slices to start from: those with a click, that of a flat box, or the middle of a box."""
        starts = {int(k) for k in np.rint(self.prompt.foreground[:, 2])}
        box = self.prompt.box
        if box is not None and (not starts or box[0, 2] == box[1, 2]):
            starts.add(int(np.rint(box[:, 2].clip(0, self.volume.shape[2] - 1).mean())))
        return sorted(starts)

    def answer(self, k: int) -> State:
        """The mask of a slice's own prompts; from the session when it knows it."""
        key, encoded = self._encoded(k)
        prompt = self.on_slice(k)
        remembered = (key, self.segmenter.sam.adapter_digest)
        known = self.session.recall(remembered, prompt) if self.session is not None else None
        if known is not None and known[0] == prompt:
            return known[1]
        with self._decoding():
            state = self.segmenter.decoder.decode(encoded, self.frame, prompt, known[1] if known else None)
        if self.session is not None:
            self.session.remember(remembered, prompt, state)
        return state

    def follow(self, k: int, neighbour: State) -> State | None:
        """The mask of slice k, led by that of the slice beside it; None where the object has ended."""
        if not neighbour.mask.any():
            return None
        _, encoded = self._encoded(k)
        with self._decoding():
            state = self.segmenter.decoder.follow(encoded, self.frame, self.on_slice(k), neighbour)
        self.look_at(k, state)
        alike = same_object(self._tones[id(state)], self._tones[id(neighbour)])
        return state if alike and goes_on(state, neighbour) else None

    def look_at(self, k: int, state: State) -> None:
        """Note the tones of slice k's mask: its neighbours are compared with them."""
        pixels = self.frame.pad(slice_pixels(self.volume, k, self.window, self.frame))
        cells = F.adaptive_avg_pool2d(pixels, len(state.mask)).numpy()
        self._tones[id(state)] = tones_of(state.mask, cells)

    def result(self, states: Mapping[int, State]) -> Result:
        """The answer to the user: the slices' masks on the volume's grid."""
        mask = np.zeros(self.volume.shape, np.uint8, order="F")
        for k, state in states.items():
            mask[:, :, k] = self.frame.logits_to_voxel(state.logits.float()[None])[0].numpy().T > 0
        found = mask.any()
        for points, value in ((self.prompt.foreground, 1), (self.prompt.background, 0)):
            i, j, k = np.rint(points[np.isin(np.rint(points[:, 2]), list(states))]).astype(int).T
            mask[i, j, k] = value
        scores = {k: state.score for k, state in states.items()}
        encoded = self.timings["encode"] > 0
        self.timings["total"] = 1e3 * (time.perf_counter() - self.started)
        return Result(
            mask,
            tuple(states),
            float(np.mean(list(scores.values()))),
            scores,
            self.timings,
            {"window": str(self.window), "backbone": self.segmenter.sam.config.name},
            not encoded,
            () if found else ("the model found no object here: click elsewhere or draw a box",),
        )

    def _encoded(self, k: int) -> tuple[Hashable, Encoded]:
        segmenter, sam = self.segmenter, self.segmenter.sam

        def encode() -> Encoded:
            image = slice_input(self.volume, k, self.window, sam.config, self.frame)
            with segmenter._encoder.turn(), torch.inference_mode(), self._stopwatch("encode"):
                return Encoded(sam.encode(image.to(sam.dense_pe)), picture_of(image, self.volume.is_rgb))

        depth = 1
        key = (
            self.volume.slice_digest(k),
            depth,
            (self.window.low, self.window.high),
            (sam.digest, sam.image_size, sam.encoder_digest),
        )
        encoded, _ = segmenter.cache.get(key, encode)
        return key, encoded

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        with self.segmenter._decoder.turn(), torch.inference_mode(), self._stopwatch("decode"):
            yield

    @contextmanager
    def _stopwatch(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] += 1e3 * (time.perf_counter() - started)
