"""From one click to a volume: Dice of whole objects, by the protocol of the simulated annotator in space.

`python benchmarks/volumes.py FOLDER [--adapter DIR|none] [--cases N] [--splits FILE] [--values V...]`, the
folder holding `images/` and `labels/` with files of the same stem, of which `--splits` leaves those that
training held out. Each label is asked for by itself: one click at the deepest point of its middle slice; five
corrective clicks after it, each at the deepest point of the largest wrong region of the volume; one tight box
in space. Beside it what every slice for itself gives, with a box or a click on each, and what a U-Net finds
unasked. A model that has learnt the labels' names is told them, unless `--unnamed`. Dice is on the image's
own grid; slices are the prompts that a method needs.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsa.adapters.state import load_adapter, starter_adapter
from medsa.data.volume import Volume
from medsa.evaluation import dice
from medsa.prompts.annotator import first_click, next_click, tight_box
from medsa.prompts.prompt import Prompt
from medsa.sam import load_sam
from medsa.segmenter import Result, Segmenter, Session
from medsa.segmenter.classes import classify_volume
from medsa.segmenter.served import NONE
from medsa.training.cases import read_cases
from medsa.training.classes import promptless
from medsa.training.splits import Splits

CORRECTIONS = 5
SMALLEST = 64
"""Voxels and slices of an object that counts: it has an inside, and neighbours to be followed to."""

Mask = NDArray[np.bool_]
Row = dict[str, float]


def main() -> None:
    """Print a line an object as it is measured, then the means of each label."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="lite_medsam")
    parser.add_argument("--adapter", type=Path, help="an adapter version, or none; default: the starter")
    parser.add_argument("--cases", type=int, default=6, help="cases, spread over the folder (6)")
    parser.add_argument("--skip", type=int, default=0, help="cases to leave out at the folder's start (0)")
    parser.add_argument("--splits", type=Path, help="a training's splits.json: held-out patients only")
    parser.add_argument("--single", action="store_true", help="a method for slabs sees slices one by one")
    parser.add_argument("--unasked", type=Path, help="a version that takes no prompt (a U-Net), beside it")
    parser.add_argument("--values", type=int, nargs="+", help="labels to measure; default: all")
    parser.add_argument("--union", action="store_true", help="everything that is not 0 as one object")
    parser.add_argument("--no-slices", action="store_true", help="without the methods that go slice by slice")
    parser.add_argument(
        "--unnamed", action="store_true", help="labels are not told to a model that knows them"
    )
    args = parser.parse_args()
    if args.splits is not None and not args.splits.is_file():
        parser.error(f"there is no record of sides at {args.splits}")
    logging.disable(logging.WARNING)
    sam = load_sam(args.backbone)
    folder = starter_adapter(args.backbone) if args.adapter is None else args.adapter
    model = sam if folder in (None, Path(NONE)) else load_adapter(sam, folder)
    model.accelerate()
    segmenter = (OneByOne if args.single else Segmenter)(model, cache_mb=1024)
    found = read_cases(args.folder)[args.skip :]
    if args.splits is not None:
        sides = Splits(args.splits).assign(case.patient for case in found)
        found = [case for case in found if sides[case.patient] == "validation"]
    automatic = None if args.unasked is None else promptless(sam, args.unasked)
    rows: dict[str, list[Row]] = defaultdict(list)
    for case in found[:: max(1, len(found) // args.cases)][: args.cases]:
        volume, labels, names = case.read()
        objects = (
            {"all": labels != 0}
            if args.union
            else {
                name: labels == value
                for value, name in names.items()
                if args.values is None or value in args.values
            }
        )
        unasked = None if automatic is None else classify_volume(automatic, volume).mask
        for name, truth in objects.items():
            if truth.sum() >= SMALLEST and truth.any(axis=(0, 1)).sum() >= 3:
                told = segmenter if args.unnamed else segmenter.about(name)
                row = measured(told, volume, truth, slices=not args.no_slices)
                if automatic is not None and unasked is not None and name in automatic.labels:
                    row["unasked"] = dice(np.equal(unasked, 1 + automatic.labels.index(name)), truth)
                rows[name].append(row)
                print(f"{name} {len(rows[name])}: {shown([row])}", flush=True)
    for name, measured_rows in rows.items():
        print(f"{name} (n = {len(measured_rows)}): {shown(measured_rows)}")
    every = [row for found in rows.values() for row in found]
    print(f"all (n = {len(every)}): {shown(every)}")


class OneByOne(Segmenter):
    """A runtime that sees no slabs, whatever the model was made for."""

    depth = 1


def shown(rows: list[Row]) -> str:
    """Means of Dice and counts, medians of seconds."""
    values: Mapping[str, list[float]] = {
        name: [row[name] for row in rows if name in row] for name in dict.fromkeys(n for r in rows for n in r)
    }
    return "  ".join(
        f"{name} {statistics.median(found):.2f}" if name.endswith(" s") else f"{name} {np.mean(found):.3f}"
        for name, found in values.items()
    )


def measured(segmenter: Segmenter, volume: Volume, truth: Mask, *, slices: bool) -> Row:
    """Dice of one object by prompt, and seconds without encoding: first volume, a correction."""
    return {
        **clicked(segmenter, volume, truth),
        **boxed(segmenter, volume, truth),
        **(slice_by_slice(segmenter, volume, truth) if slices else {}),
    }


def clicked(segmenter: Segmenter, volume: Volume, truth: Mask) -> Row:
    """One click in the middle slice, then corrections anywhere in the volume."""
    held = np.flatnonzero(truth.any(axis=(0, 1)))
    k = int(held[len(held) // 2])
    points: dict[bool, list[tuple[int, ...]]] = {True: [(*first_click(truth[:, :, k]).index, k)], False: []}
    session, curve, seconds, last = Session(), list[float](), list[float](), list[Result]()
    for _ in range(1 + CORRECTIONS):
        prompt = Prompt(foreground=np.array(points[True]), background=np.array(points[False]))
        started = time.perf_counter()
        last.append(segmenter.segment_volume(volume, prompt, session=session))
        seconds.append(time.perf_counter() - started - last[-1].timings["encode"] / 1e3)
        mask = last[-1].mask != 0
        curve.append(dice(mask, truth))
        click = next_click(truth, mask)
        if click is None:
            break
        points[click.positive].append(click.index)
    curve += curve[-1:] * (1 + CORRECTIONS - len(curve))
    first = last[0]
    spill = len(set(first.slices) - set(held.tolist())), len(set(held.tolist()) - set(first.slices))
    return {
        "1 click": curve[0],
        **{f"+{n}": curve[n] for n in range(1, CORRECTIONS + 1)},
        "slices": len(held),
        "beyond": spill[0],
        "short": spill[1],
        "encode s": first.timings["encode"] / 1e3,
        "first s": seconds[0],
        "correction s": statistics.median(seconds[1:]) if seconds[1:] else 0.0,
    }


def boxed(segmenter: Segmenter, volume: Volume, truth: Mask) -> Row:
    """One tight box in space."""
    return {"3D box": dice(segmenter.segment_volume(volume, Prompt(box=tight_box(truth))).mask, truth)}


def slice_by_slice(segmenter: Segmenter, volume: Volume, truth: Mask) -> Row:
    """A box, and a click, on every slice for itself: what the volume costs without following."""
    masks = {name: np.zeros(truth.shape, bool) for name in ("click a slice", "box a slice")}
    for k, prompts in every_slice(truth):
        for name, prompt in prompts.items():
            masks[name][:, :, k] = segmenter.segment_slice(volume, prompt, k).mask[:, :, k]
    return {name: dice(mask, truth) for name, mask in masks.items()}


def every_slice(truth: Mask) -> Iterator[tuple[int, dict[str, Prompt]]]:
    """A click and a box on each slice that holds the object; a line of voxels gets the click alone."""
    for k in np.flatnonzero(truth.any(axis=(0, 1))):
        flat = truth[:, :, k]
        click = Prompt(foreground=np.array([[*first_click(flat).index, k]]))
        low, high = tight_box(flat)
        box = Prompt(box=np.array([[*low, k], [*high, k]])) if (high > low).all() else click
        yield int(k), {"click a slice": click, "box a slice": box}


if __name__ == "__main__":
    main()
