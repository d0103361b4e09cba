"""How unsure a model is of a study that nobody has labelled: asked with boxes it finds by itself.

Every component is a ratio, 0 (sure) to 1, so that an organ does not win by its size:

predicted   1 - the IoU that the model predicts of its own answer
stability   1 - the IoU of the masks at a lower and a higher threshold (Kirillov et al., "Segment Anything")
jitter      1 - Dice of the answers to the box and to the box moved a little
flip        1 - Dice with the answer on the mirrored slice (SAM has no dropout: this and jitter stand for it)
boundary    entropy of the answer in a band of fixed width along its edge
versions    1 - Dice with the answer of another adapter version

What several labels and components say is joined by rank within the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from torch import Tensor
from torch.nn import functional as F

from medsa.data.model_input import picture_of, slice_input
from medsa.data.volume import Volume
from medsa.prompts.annotator import tight_box
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Segmenter
from medsa.segmenter.memory import look_of
from medsa.segmenter.propagate import stop_if
from medsa.segmenter.prototypes import Cells, Prototypes, likeness, places_of
from medsa.segmenter.request import Request
from medsa.segmenter.slices import Encoded

Floats = NDArray[np.float64]
Components = Mapping[str, float]
Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in model pixels."""

LOOKED_AT = 9
"""Slices of a study that are looked at, evenly spread."""
ASKED = 2
"""Of these so many are asked about for each label: where most of it seems to be."""
MOVED, DEVIATION = 4, 0.08
"""Boxes that are moved, and by which part of the box's extent."""
OFFSET = 1.0
"""Logits between 0 and the lower and the higher threshold."""
BAND = 2
"""Cells on each side of an edge whose entropy counts."""


@dataclass(frozen=True)
class Examined:
    """What was seen of a study: its `look` (2C,), pooled features; by label `components` and what `held` it.

    `held` 0..1 is how much the cells that are most like the label are like it.
    """

    look: NDArray[np.float32]
    components: Mapping[str, Components] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)


def examine(
    segmenter: Segmenter,
    volume: Volume,
    prototypes: Mapping[str, Prototypes],
    *,
    window: str = "auto",
    other: Segmenter | None = None,
    slices: int = LOOKED_AT,
    pause: Callable[[], None] = lambda: None,
    cancelled: Callable[[], bool] | None = None,
) -> Examined:
    """Look at a study, and ask about each label that its prototypes find there; without any, only look.

    `other` is a segmenter of another adapter version. All is work ahead: any request comes first, and
    `pause()` is called between two steps. Raises `CancelledError` soon after `cancelled()`.
    """
    volume = segmenter.seen(volume)[0]
    request = Request(segmenter, volume, Prompt(), window, None)
    count = volume.shape[2]
    chosen = sorted({int(k) for k in np.linspace(0, count - 1, min(slices, count) + 2).round()[1:-1]} or {0})
    pooled, likely = [], dict[str, dict[int, Tensor]]()
    for k in chosen:
        pause()
        stop_if(cancelled)
        encoded = request.encoded(k, ahead=True)[1]
        cells = _cells(request, k, encoded)
        pooled.append(_pooled(encoded, cells.shown))
        for name, known in prototypes.items():
            if len(known):
                likely.setdefault(name, {})[k] = likeness(cells, known)
    look = np.concatenate([np.mean(pooled, axis=0), np.std(pooled, axis=0)]).astype(np.float32)
    components, held = dict[str, Components](), dict[str, float]()
    for name, maps in likely.items():
        held[name] = round(max(float(found.max()) for found in maps.values()), 4)
        boxes = _boxes(request, maps)
        rows, told = [], segmenter.about(name)
        beside = None if other is None else other.about(name)
        for k, box in sorted(boxes.items(), key=lambda pair: -_area(pair[1]))[:ASKED]:
            pause()
            stop_if(cancelled)
            rows.append(_asked(request, k, box, told, beside))
        if rows:
            components[name] = {
                part: round(float(np.mean([row[part] for row in rows])), 5) for part in rows[0]
            }
    return Examined(look, components, held)


def joined(studies: Sequence[Mapping[str, Components]]) -> tuple[Floats, dict[str, Floats]]:
    """(N,) how unsure the model is of each of N studies, 0..1, and the same for each label; NaN if unknown.

    Of each component of a label, a study's place among the others counts, not the value; labels and
    components have equal weight.
    """
    labels = sorted({name for study in studies for name in study})
    by_label = {}
    for label in labels:
        parts = sorted({part for study in studies for part in study.get(label, {})})
        values = np.array(
            [[study.get(label, {}).get(part, np.nan) for part in parts] for study in studies], dtype=float
        )
        by_label[label] = _mean(np.stack([_places(column) for column in values.T]))
    if not by_label:
        return np.full(len(studies), np.nan), {}
    return _mean(np.stack(list(by_label.values()))), by_label


def _places(values: Floats) -> Floats:
    """(N,), each value's place among those that are known, above 0 and up to 1; equal ones share theirs."""
    places, known = np.full(len(values), np.nan), np.isfinite(values)
    if known.any():
        places[known] = stats.rankdata(values[known]) / known.sum()
    return places


def _mean(rows: Floats) -> Floats:
    """The mean of each column (M, N) -> (N,) over what is known; NaN where nothing is."""
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, rows, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


def unstable(logits: Tensor, offset: float = OFFSET) -> float:
    """1 - IoU of the masks of `logits` (h, w) at `offset` above and below 0; 1 when both are empty."""
    high, low = int((logits > offset).sum()), int((logits > -offset).sum())
    return 1 - high / low if low else 1.0


def unlike(one: Tensor, other: Tensor) -> float:
    """1 - Dice of two masks (h, w) of bool; 1 when both are empty, as an answer without an object is none."""
    total = int(one.sum() + other.sum())
    return 1 - 2 * int((one & other).sum()) / total if total else 1.0


def edge_entropy(logits: Tensor, band: int = BAND) -> float:
    """Mean entropy, 0..1, of `logits` (h, w) within `band` cells of the mask's edge; 1 without an edge."""
    mask = (logits > 0)[None].float()
    grown = F.max_pool2d(mask, 2 * band + 1, 1, band)
    shrunk = 1 - F.max_pool2d(1 - mask, 2 * band + 1, 1, band)
    near = (grown > shrunk)[0]
    if not near.any():
        return 1.0
    p = torch.sigmoid(logits[near].double()).clamp(1e-9, 1 - 1e-9)
    return float(-(p * p.log2() + (1 - p) * (1 - p).log2()).mean())


def _pooled(encoded: Encoded, shown: Tensor) -> NDArray[np.float32]:
    """(C,), the mean of a slice's embedding over the cells that show it."""
    return encoded.embedding[0].float().cpu()[:, shown].mean(dim=1).numpy()


def _cells(request: Request, k: int, encoded: Encoded) -> Cells:
    """The cells of slice k as they are compared with prototypes."""
    look, frame = look_of(encoded), request.frame
    side = look.shape[-1]
    shown = torch.zeros(side, side, dtype=torch.bool)
    shown[: -(-frame.rows * side // frame.size), : -(-frame.columns * side // frame.size)] = True
    return Cells(look, places_of(request.volume, frame, k, side), shown)


def _boxes(request: Request, maps: Mapping[int, Tensor]) -> dict[int, Box]:
    """A box about the largest part of what is likely the label, on each slice that holds some of it."""
    boxes = {}
    for k, likely in maps.items():
        parts, count = ndimage.label(likely.numpy() > 0.5)
        if count:
            largest = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
            cell = request.frame.size / len(largest)
            (y0, x0), (y1, x1) = tight_box(largest)
            boxes[k] = (x0 * cell, y0 * cell, (x1 + 1) * cell - 1, (y1 + 1) * cell - 1)
    return boxes


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _asked(
    request: Request, k: int, box: Box, segmenter: Segmenter, other: Segmenter | None
) -> dict[str, float]:
    """The components of one object on slice k, asked for with `box`."""
    encoded = request.encoded(k, ahead=True)[1]
    logits, scores = _decoded(segmenter, encoded, _moved(request, k, box))
    first = logits[0] > 0
    found = {
        "predicted": 1 - float(scores[0].clamp(0, 1)),
        "stability": unstable(logits[0]),
        "jitter": float(np.mean([unlike(first, one > 0) for one in logits[1:]])),
        "flip": unlike(first, _mirrored(request, k, box, segmenter) > 0),
        "boundary": edge_entropy(logits[0]),
    }
    if other is not None:
        window = f"{request.window.low},{request.window.high}"
        beside = Request(other, request.volume, Prompt(), window, None)
        there = beside.encoded(k, ahead=True)[1]
        found["versions"] = unlike(first, _decoded(other, there, [box])[0][0] > 0)
    return found


def _decoded(segmenter: Segmenter, encoded: Encoded, boxes: Sequence[Box]) -> tuple[Tensor, Tensor]:
    """Logits (N, h, w) and predicted IoU (N,) of N boxes on a slice."""
    sam = segmenter.sam
    with segmenter.decoding.turn(ahead=True), torch.inference_mode():
        asked = torch.tensor(boxes, dtype=torch.float32).to(sam.dense_pe)
        logits, scores = sam.decode(encoded.embedding, boxes=asked)
        logits = sam.refine(logits, encoded.picture.expand(len(logits), -1, -1, -1))
        return logits[:, 0].float().cpu(), scores[:, 0].float().cpu()


def _moved(request: Request, k: int, box: Box) -> list[Box]:
    """The box, and the same with each side moved; always in the same way on the same slice."""
    rng, frame = np.random.default_rng([k, MOVED]), request.frame
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    moves = rng.standard_normal((MOVED, 4)) * DEVIATION * extent
    most = np.array([frame.columns, frame.rows] * 2) - 1.0
    return [box, *(tuple((np.array(box) + move).clip(0, most)) for move in moves)]


def _mirrored(request: Request, k: int, box: Box, segmenter: Segmenter) -> Tensor:
    """(h, w) logits on the slice with left and right exchanged, turned back."""
    frame = request.frame
    image = slice_input(request.volume, k, request.window, segmenter.sam.config, frame)
    columns = frame.columns
    image[..., :columns] = image[..., :columns].flip(-1)
    with segmenter.encoding.turn(ahead=True), torch.inference_mode():
        embedding = segmenter.sam.encode(image.to(segmenter.sam.dense_pe))
    encoded = Encoded(embedding, picture_of(image, request.volume.is_rgb))
    turned = (columns - 1 - box[2], box[1], columns - 1 - box[0], box[3])
    logits = _decoded(segmenter, encoded, [turned])[0][0].clone()
    shown = round(columns * logits.shape[-1] / frame.size)
    logits[:, :shown] = logits[:, :shown].flip(-1)
    return logits
