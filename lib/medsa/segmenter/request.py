"""One request on its way: a volume, what is said about it, and its slices as the model sees them."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medsa.data.model_input import Frame, picture_of, slice_input, slice_pixels
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.prompts.prompt import Prompt
from medsa.segmenter.corrections import correct
from medsa.segmenter.session import Point, Session, SlicePrompt, State
from medsa.segmenter.slabs import Slab, slabs_with
from medsa.segmenter.slices import Encoded
from medsa.segmenter.start import Start
from medsa.segmenter.zoom import zoomed

if TYPE_CHECKING:
    from medsa.segmenter.runtime import Segmenter


@dataclass(frozen=True)
class Result:
    """A mask and how it came about.

    `mask` (I, J, K) uint8 0/1 on the volume's grid, Fortran order; `slices` the k that hold or were asked for
    the object; `scores` by slice how sure its mask is, 0..1 (predicted IoU, and in a volume how far those who
    followed the object agree), `score` their mean; `timings` milliseconds of encode, decode and total;
    `options` what was used: window, backbone, `zoom` (how much closer than the whole slice it was looked at);
    `cached` True when nothing had to be encoded; `warnings` sentences for the user.
    """

    mask: NDArray[np.uint8]
    slices: tuple[int, ...]
    score: float
    scores: dict[int, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    cached: bool = False
    warnings: tuple[str, ...] = ()

    def stored(self, orientation: Orientation) -> Result:
        """The same on the grid of the file, of a volume that was looked at in another orientation."""
        if orientation.as_stored:
            return self
        return replace(
            self,
            mask=orientation.stored(self.mask),
            slices=tuple(sorted(map(orientation.slice_of, self.slices))),
            scores={orientation.slice_of(k): score for k, score in self.scores.items()},
        )


class Request:
    """A volume, its prompts and a clock; gone when it is answered. Slices are encoded in slabs of `depth`.

    The volume is one that is in the orientation in which it is looked at, and the prompts are on its grid.

    `prompt` is what the model is asked with, `bounds` (2, 3) voxels or None what the object may not leave:
    a box that spans slices is both, one drawn across the slices becomes a click in its middle and bounds.
    `start` is a mask to begin with instead of nothing, or None.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        volume: Volume,
        prompt: Prompt,
        window: str,
        session: Session | None,
        depth: int = 1,
        start: Start | None = None,
        *,
        zoom: bool = True,
    ) -> None:
        self.started = time.perf_counter()
        self.segmenter, self.volume, self.session = segmenter, volume, session
        self.prompt, self.bounds = in_space(prompt, volume.shape)
        self.depth, self.start = depth, start
        self.window = segmenter.window(volume, window)
        whole = Frame.of(volume, segmenter.sam.config, segmenter.sam.image_size)
        self.frame = zoomed(whole, self.prompt) if zoom else whole
        self.zoom = float(self.frame.scale.max() / whole.scale.max())
        self.timings = {"encode": 0.0, "decode": 0.0}

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

    @property
    def cells(self) -> int:
        """Logits a side of the model's square."""
        return 4 * self.segmenter.sam.embedding_size

    def begins(self, k: int) -> bool:
        """True when there is a mask to begin with on slice k."""
        return self.start is not None and k in self.start.slices

    def locates(self, k: int) -> bool:
        """True when a prompt of slice k, or the mask to begin with, says where the object is."""
        prompt = self.on_slice(k)
        return bool(prompt.foreground) or prompt.box is not None or self.begins(k)

    def answer(self, k: int) -> State:
        """The mask of a slice's own prompts; from the session when it knows it.

        A mask to begin with is corrected around the clicks, without the model.
        """
        if self.start is not None and self.begins(k):
            before = self.start.state(k, self.frame, self.cells)
            picture = torch.from_numpy(self.pixels(k, self.cells) / 255)
            return State(correct(before.logits, picture, self.on_slice(k), self.frame).half(), before.score)
        key, encoded = self.encoded(k)
        prompt = self.on_slice(k)
        remembered = (key, self.segmenter.sam.adapter_digest)
        known = self.session.recall(remembered, prompt) if self.session is not None else None
        if known is not None and known[0] == prompt:
            return known[1]
        with self.decoding():
            state = self.segmenter.decoder.decode(encoded, self.frame, prompt, known[1] if known else None)
        if self.session is not None:
            self.session.remember(remembered, prompt, state)
        return state

    def pixels(self, k: int, cells: int) -> NDArray[np.float32]:
        """Slice k of the model's whole square, windowed to 0..255, (1 or 3, `cells`, `cells`)."""
        square = self.frame.pad(slice_pixels(self.volume, k, self.window, self.frame))
        return F.adaptive_avg_pool2d(square, cells).numpy()

    def millimetres(self, cells: int) -> tuple[float, float]:
        """Millimetres of a cell, `cells` a side of the model's square, and of a slice."""
        spacing = self.volume.spacing
        return float((spacing[:2] / self.frame.scale).mean() * self.frame.size / cells), float(spacing[2])

    def result(self, states: Mapping[int, State]) -> Result:
        """The answer to the user: the slices' masks on the volume's grid."""
        mask = np.zeros(self.volume.shape, np.uint8, order="F")
        for k, state in states.items():
            if self.start is not None and self.begins(k):
                mask[:, :, k] = self.start.corrected(k, state, self.frame)
            else:
                logits = self.frame.logits_to_voxel(state.logits.float()[None])[0].numpy().T
                mask[(*self.frame.inside, k)] = logits > 0
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
            {
                "window": str(self.window),
                "backbone": self.segmenter.sam.config.name,
                "zoom": f"{self.zoom:.1f}",
            },
            not encoded,
            () if found else ("the model found no object here: click elsewhere or draw a box",),
        )

    def encoded(self, k: int, *, ahead: bool = False) -> tuple[Hashable, Encoded]:
        """Slice k as the image encoder sees it, from the cache where it is, and its key there.

        `ahead`: nobody waits for it, so that it is encoded when nobody waits for anything.
        """
        if self.depth == 1:
            key, alone = self._slab(Slab(k, 1), ahead=ahead)
            return key, Encoded(alone.embedding, alone.picture[0])
        parts = [
            (slab, part, *self._slab(slab, ahead=ahead))
            for slab, part in slabs_with(k, self.volume.shape[2], self.depth)
        ]
        embedding = sum(part * seen.embedding[k - slab.first, None] for slab, part, _, seen in parts)
        slab, _, _, seen = parts[0]
        picture = seen.picture[k - slab.first]
        return (k, *(key for _, _, key, _ in parts)), Encoded(torch.as_tensor(embedding), picture)

    def _slab(self, slab: Slab, *, ahead: bool = False) -> tuple[Hashable, Encoded]:
        """Embeddings (D, C, h, w) and pictures (D, 1 or 3, s, s) of a slab, and their key in the cache."""
        segmenter, sam = self.segmenter, self.segmenter.sam

        def encode() -> Encoded:
            images = torch.cat(
                [slice_input(self.volume, k, self.window, sam.config, self.frame) for k in slab.slices]
            )
            pictures = torch.stack([picture_of(image[None], self.volume.is_rgb) for image in images])
            images = images.to(sam.dense_pe)
            with segmenter.encoding.turn(ahead=ahead), torch.inference_mode(), self._stopwatch("encode"):
                seen = sam.encode(images) if slab.length == 1 else sam.encode(images[None])[0]
                return Encoded(seen, pictures)

        key = (
            tuple(self.volume.slice_digest(k) for k in slab.slices),
            (self.window.low, self.window.high),
            (sam.digest, sam.image_size, sam.encoder_digest),
            self.frame,
        )
        return key, segmenter.cache.get(key, encode)[0]

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """A turn at the decoder."""
        with self.segmenter.decoding.turn(), torch.inference_mode(), self._stopwatch("decode"):
            yield

    @contextmanager
    def _stopwatch(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] += 1e3 * (time.perf_counter() - started)


def in_space(prompt: Prompt, shape: tuple[int, int, int]) -> tuple[Prompt, NDArray[np.float64] | None]:
    """What to ask a model that sees slices, and the box (2, 3) that bounds the object, if there is one.

    A box that was drawn across the slices says where the object is in its own plane: its middle is a click
    on it, and the object may reach as far as the image along the axis on which the box is flat.
    """
    box = prompt.box
    if box is None or not prompt.across:
        bounded = box is not None and bool(np.rint(box[0, 2]) < np.rint(box[1, 2]))
        return prompt, box if bounded else None
    last = np.array(shape, dtype=np.float64) - 1
    clipped = box.clip(0, last)
    flat = box[0] == box[1]
    bounds = np.stack([np.where(flat, 0, clipped[0]), np.where(flat, last, clipped[1])])
    middle = np.rint(clipped.mean(axis=0))
    return Prompt(np.vstack([middle[None], prompt.foreground]), prompt.background), bounds
