"""How fast slices are evaluated: many asked together beside one at a time through the runtime.

`python benchmarks/evaluation.py [--slices N] [--adapter DIR|none]`: drawn slices of 256 x 256, one organ
on each, asked with ten clicks and three boxes. Both sides take turns on the same few slices, each with an
empty cache, and must come to the same Dice. Printed are medians of a slice, encoding and answers apart, the
ratio, and what a thousand slices would take; and the processor's time, which other work on the machine hardly
changes.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from medsa.adapters.state import load_adapter, starter_adapter
from medsa.data.phantom import draw_abdomen
from medsa.data.volume import Volume
from medsa.evaluation.answering import Answer, hold, one_by_one, together
from medsa.evaluation.asking import Answers, Ask, Protocol, Reply, Target, dialogues
from medsa.evaluation.evaluate import OBJECTS
from medsa.sam import load_sam
from medsa.segmenter import Segmenter
from medsa.segmenter.served import NONE

PROTOCOL = Protocol(noc=False)
SIDE, TARGET_MINUTES = 256, 20


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=32, help="slices that are asked about (32)")
    parser.add_argument("--backbone", default="lite_medsam")
    parser.add_argument("--adapter", type=Path, help="an adapter version, or none; default: the starter")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    sam = load_sam(args.backbone)
    folder = starter_adapter(args.backbone) if args.adapter is None else args.adapter
    model = sam if folder in (None, Path(NONE)) else load_adapter(sam, folder)
    model.accelerate()
    segmenter = Segmenter(model)
    sides: dict[str, Callable[[], Answer]] = {
        "one by one": lambda: partial(one_by_one, segmenter),
        "together": lambda: partial(together, segmenter, kept={}),
    }
    targets = drawn(args.slices)
    times: dict[str, list[float]] = {name: [] for name in sides}
    encoding: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    apart = 0.0
    for turn, first in enumerate(range(0, len(targets), OBJECTS)):
        some = targets[first : first + OBJECTS]
        dice: dict[str, list[float]] = {}
        for name in sorted(sides, reverse=bool(turn % 2)):
            segmenter.cache.clear()
            started = time.process_time()
            seconds, encoded, dice[name] = asked(some, sides[name]())
            processor[name].append((time.process_time() - started) / len(some))
            times[name].append(1e3 * seconds / len(some))
            encoding[name].append(encoded / len(some))
        apart = max(apart, float(np.abs(np.subtract(dice["together"], dice["one by one"])).max()))
    for name in sides:
        whole, encoded = statistics.median(times[name]), statistics.median(encoding[name])
        print(
            f"{name:<12} {whole:7.0f} ms a slice: encoding {encoded:.0f}, 13 answers, clicks and metrics "
            f"{whole - encoded:.0f}; 1,000 slices in {whole / 60:.1f} minutes (target {TARGET_MINUTES}); "
            f"{statistics.median(processor[name]):.2f} s of a processor a slice"
        )
    answers = [statistics.median(np.subtract(times[name], encoding[name])) for name in sides]
    print(f"without encoding {answers[0] / answers[1]:.2f} times as fast; Dice at most {apart:.4f} apart")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB")


def drawn(slices: int) -> list[Target]:
    """So many slices of drawn abdomens, an organ on each."""
    found: list[Target] = []
    for seed in range(slices):
        if len(found) == slices:
            break
        hounsfield, organs, spacing = draw_abdomen((SIDE, SIDE, 8), seed)
        volume = Volume(hounsfield, np.diag([*spacing, 1.0]), "CT")
        names = [name for name, mask in organs.items() if mask[:, :, 4].sum() > 100]
        for k in range(2, 6):
            truth = organs[names[(seed + k) % len(names)]][:, :, k]
            if len(found) < slices and truth.sum() > 100:
                found.append(Target(volume, truth, k))
    return found


def asked(targets: list[Target], answer: Answer) -> tuple[float, float, list[float]]:
    """Seconds, milliseconds of them that encoded, and each Dice."""
    found = [Answers() for _ in targets]
    encoded: list[float] = []

    def counted(asks: Sequence[Ask]) -> list[Reply]:
        replies = answer(asks)
        encoded.extend(reply.encoding for reply in replies)
        return replies

    started = time.perf_counter()
    held = []
    for number, (target, answers) in enumerate(zip(targets, found, strict=True)):
        held += dialogues(target, PROTOCOL, [number], answers)
    hold(held, counted)
    seconds = time.perf_counter() - started
    return seconds, sum(encoded), [values["dice"] for one in found for values in one.prompts.values()]


if __name__ == "__main__":
    main()
