"""How good a mask is after 1, 3 and 10 clicks and with a box, by the protocol of the simulated annotator.

`python benchmarks/click_quality.py FOLDER... [--slices N] [--cases N] [--value V] [--volumes]`, each folder
holding `images/` and `labels/` with files of the same stem. Slices are taken at even steps through an
object's larger ones; Dice is on the image's own grid. First clicks are at the deepest point, or random with
`--random` (three seeds).
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsa.adapters.state import load_adapter, starter_adapter
from medsa.data.read import read_volume
from medsa.data.volume import Volume
from medsa.evaluation import dice
from medsa.prompts.annotator import first_click, loose_box, next_click, tight_box
from medsa.prompts.prompt import Prompt
from medsa.sam import load_sam
from medsa.segmenter import Segmenter, Session
from medsa.segmenter.served import NONE

CLICKS = (1, 2, 3, 5, 10)
SEEDS = (0, 1, 2)
Mask = NDArray[np.bool_]
Row = dict[str, float]


def main() -> None:
    """Print a line a set: mean Dice by prompt, and the median milliseconds of a warm click."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--backbone", default="lite_medsam")
    parser.add_argument("--adapter", type=Path, help="an adapter version, or none; default: the starter")
    parser.add_argument("--cases", type=int, default=12, help="cases of each folder, spread over it (12)")
    parser.add_argument("--slices", type=int, default=2, help="slices of each volume (2)")
    parser.add_argument("--value", type=int, help="the label's value; default: everything that is not 0")
    parser.add_argument("--random", action="store_true", help="random first clicks instead of the deepest")
    parser.add_argument("--volumes", action="store_true", help="whole volumes instead of slices")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    sam = load_sam(args.backbone)
    folder = starter_adapter(args.backbone) if args.adapter is None else args.adapter
    model = sam if folder in (None, Path(NONE)) else load_adapter(sam, folder)
    model.accelerate()
    segmenter = Segmenter(model)
    measure: Callable[[Volume, Mask], Iterator[Row]] = (
        (lambda volume, truth: volumes(segmenter, volume, truth))
        if args.volumes
        else (lambda volume, truth: slices(segmenter, volume, truth, args.slices, args.random))
    )
    for folder in args.folders:
        rows = [
            row for volume, truth in cases(folder, args.cases, args.value) for row in measure(volume, truth)
        ]
        values = defaultdict(list)
        for row in rows:
            for name, value in row.items():
                values[name].append(value)
        shown = (
            f"{name} {statistics.median(found):.0f}"
            if name.endswith("ms")
            else f"{name} {np.mean(found):.3f}"
            for name, found in values.items()
        )
        print(f"{folder.resolve().name} (n = {len(rows)}): {'  '.join(shown)}", flush=True)


def cases(folder: Path, most: int, value: int | None) -> Iterator[tuple[Volume, Mask]]:
    """Images with the truth (I, J, K) of one object, at most so many, evenly spread over the folder."""
    labels = {path.name.partition(".")[0]: path for path in sorted((folder / "labels").iterdir())}
    images = {path.name.partition(".")[0]: path for path in sorted((folder / "images").iterdir())}
    pairs = [(images[stem], labels[stem]) for stem in labels if stem in images]
    for image, label in pairs[:: max(1, len(pairs) // most)][:most]:
        values = read_volume(label).voxels
        values = values.max(axis=3) if values.ndim == 4 else values
        truth = values != 0 if value is None else values == value
        volume = read_volume(image)
        if truth.any() and truth.shape == volume.shape:
            yield volume, truth


def slices(segmenter: Segmenter, volume: Volume, truth: Mask, most: int, random: bool) -> Iterator[Row]:
    """The protocol on the slices at even steps through the object's larger ones."""
    areas = truth.sum(axis=(0, 1))
    large = np.flatnonzero(areas >= max(20, areas.max() / 2))
    for k in np.unique(large[np.linspace(0, len(large) - 1, most + 2)[1:-1].round().astype(int)]):
        for seed in SEEDS if random else (None,):
            yield _clicked(segmenter, volume, truth[:, :, k], int(k), seed) | _boxed(
                segmenter, volume, truth[:, :, k], int(k), seed or 0
            )


def volumes(segmenter: Segmenter, volume: Volume, truth: Mask) -> Iterator[Row]:
    """One click and one box on the object's largest slice, a box in space, and a click on three slices."""
    areas = truth.sum(axis=(0, 1))
    held = np.flatnonzero(areas)
    k = int(areas.argmax())
    box, space = tight_box(truth[:, :, k]), tight_box(truth)
    spread = sorted({int(held[len(held) * part // 4]) for part in (1, 2, 3)})
    prompts = {
        "1 click": Prompt(foreground=np.array([[*first_click(truth[:, :, k]).index, k]])),
        "3 slices": Prompt(foreground=np.array([[*first_click(truth[:, :, at]).index, at] for at in spread])),
        "box": Prompt(box=np.array([[*box[0], k], [*box[1], k]])),
        "3D box": Prompt(box=space),
    }
    yield {
        name: dice(segmenter.segment_volume(volume, prompt).mask, truth) for name, prompt in prompts.items()
    }


def _clicked(segmenter: Segmenter, volume: Volume, truth: Mask, k: int, seed: int | None) -> Row:
    first = first_click(truth, None if seed is None else np.random.default_rng(seed))
    points: dict[bool, list[tuple[int, ...]]] = {True: [(*first.index, k)], False: []}
    session, row, times = Session(), {}, []
    for count in range(1, max(CLICKS) + 1):
        prompt = Prompt(foreground=np.array(points[True]), background=np.array(points[False]))
        started = time.perf_counter()
        result = segmenter.segment_slice(volume, prompt, k, session=session)
        times.append(1e3 * (time.perf_counter() - started) - result.timings["encode"])
        mask = result.mask[:, :, k] != 0
        if count in CLICKS:
            row[f"{count} pt"] = dice(mask, truth)
        click = next_click(truth, mask)
        if click is not None:
            points[click.positive].append((*click.index, k))
    return row | {"1st ms": times[0], "further ms": statistics.median(times[1:])}


def _boxed(segmenter: Segmenter, volume: Volume, truth: Mask, k: int, seed: int) -> Row:
    boxes = {"box": tight_box(truth)}
    for iou in (0.75, 0.5):
        boxes[f"box {iou:g}"] = loose_box(truth, iou, np.random.default_rng(seed))
    row = {}
    for name, (low, high) in boxes.items():
        prompt = Prompt(box=np.array([[*low, k], [*high, k]]))
        row[name] = dice(segmenter.segment_slice(volume, prompt, k).mask[:, :, k], truth)
    return row


if __name__ == "__main__":
    main()
