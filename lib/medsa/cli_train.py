"""`medsa train …`: an adapter from a folder of labelled studies."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsa.cli_datasets import add_options, named, studies
from medsa.errors import BadInputError, CancelledError

if TYPE_CHECKING:
    from tqdm import tqdm

    from medsa.training.train import Trained

TRAIN = """\
Teach a backbone from labelled studies, and write an adapter version.

DATA is a folder with images/ and labels/ (files of the same name), a MONAI Label folder (images at its top,
labels/final/), or a Decathlon dataset.json. Patients are split once into those that train and those that
validate; the split is kept beside RUN. Ctrl-C stops after the step and keeps a checkpoint for --resume.
"""

DEFAULT = "decoder_prompt"

EXAMPLES = """\
examples:
  medsa train hippocampus/ --method decoder_only --minutes 15 --out runs/hippocampus
  medsa train hippocampus/ --method decoder_only --minutes 15 --out runs/hippocampus --resume
  medsa train Task04/dataset.json --labels anterior,posterior --epochs 20 --out runs/both
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `train`."""
    train = commands.add_parser(
        "train",
        help="teach an adapter from labelled studies",
        description=TRAIN,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.set_defaults(run=_train)
    train.add_argument("data", metavar="DATA", type=Path)
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="the run's folder")
    train.add_argument("--resume", action="store_true", help="go on from the checkpoint in RUN")
    length = train.add_argument_group("length (one of them)").add_mutually_exclusive_group(required=True)
    length.add_argument("--epochs", type=int, metavar="N")
    length.add_argument("--minutes", type=float, metavar="M")
    length.add_argument("--steps", type=int, metavar="N")
    what = train.add_argument_group("what is learnt")
    add_options(what)
    what.add_argument(
        "--labels", default="", metavar="A,B", help="names or values of the labels, or 1=NAME (default: all)"
    )
    what.add_argument("--backbone", default="lite_medsam", metavar="NAME", help="see `medsa backbones`")
    what.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint of one's own for it")
    what.add_argument("--method", metavar="NAME", help="see `medsa methods` (default: that of --from)")
    what.add_argument(
        "--from",
        dest="start",
        metavar="VERSION",
        help="an adapter to start from, or none (default: the one that comes with the backbone; for a method "
        "without prompts none)",
    )
    how = train.add_argument_group("how")
    how.add_argument("--settings", default="default", metavar="NAME", help="a file of configs/training")
    how.add_argument("--share", type=float, default=0.2, metavar="S", help="of the patients validate (0.2)")
    how.add_argument("--seed", type=int, default=0, metavar="N")
    how.add_argument("--window", metavar="SPEC", help="as for `segment` (default: the data set's, or auto)")
    how.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    how.add_argument("--tensorboard", action="store_true", help="write events to RUN/tensorboard")
    how.add_argument("--mlflow", type=Path, metavar="DIR", help="log to local files for `mlflow ui`")


def _train(args: argparse.Namespace) -> None:
    _check(args)

    from medsa.adapters.method import read_method
    from medsa.adapters.state import read_card, starter_adapter
    from medsa.config import Options
    from medsa.data.window import check_window
    from medsa.sam import load_sam
    from medsa.training.allocator import keep_freed_memory
    from medsa.training.cases import Nameless
    from medsa.training.classes import train_classes
    from medsa.training.length import Length
    from medsa.training.model_card import kind_of, write_model_card
    from medsa.training.settings import read_settings
    from medsa.training.splits import Splits
    from medsa.training.train import Request, train

    check_window(args.window or "auto")
    options = Options.from_conf({"backbone": args.backbone, "device": args.device})
    cases, usual = studies(args.data, args.dataset, args.split, "train")
    start = None if args.start is None else _version(args.start)
    method = read_card(start).method if start and not args.method else read_method(args.method or DEFAULT)
    if args.start is None and method.prompts:
        start = starter_adapter(options.backbone)
    labels = named(cases, [name for name in args.labels.split(",") if name])
    cases = [replace(case, names={**case.names, **labels}) for case in cases]
    request = Request(
        args.method, labels,
        Length(args.epochs, args.minutes, args.steps), read_settings(args.settings), start, args.seed,
        args.window or usual,
    )  # fmt: skip
    splits = Splits(args.out.parent / "splits.json", args.share, alike=True)
    sides = splits.assign(case.patient for case in cases)
    nameless = {
        side: [
            Nameless(splits.hashed(case.id), splits.hashed(case.patient), case.read)
            for case in cases
            if sides[case.patient] == side
        ]
        for side in ("training", "validation")
    }
    if not nameless["training"]:
        raise BadInputError(
            "every patient validates and none trains: give more studies, or a smaller --share"
        )
    print(f"{len(nameless['training'])} studies train, {len(nameless['validation'])} validate", flush=True)
    keep_freed_memory()
    sam = load_sam(options.backbone, device=options.device, weights=args.weights)
    with interruptible() as stop, bars() as bar:
        try:
            trained = (train if method.prompts else train_classes)(
                sam, nameless["training"], nameless["validation"], args.out, request,
                resume=args.resume, told=bar.told, report=bar.report, stop=stop,
                tensorboard=args.tensorboard, mlflow=args.mlflow,
            )  # fmt: skip
        except CancelledError:
            print("medsa: stopped; the same command with --resume goes on from the checkpoint", flush=True)
            raise KeyboardInterrupt from None
    write_model_card(
        trained.candidate,
        data=f"{kind_of(nameless['training'][0])}, {len(nameless['training'])} labelled studies",
        training=f"settings '{args.settings}', {trained.steps} steps, {trained.seconds / 60:.1f} minutes, "
        f"seed {args.seed}",
    )
    print(*_summary(trained), sep="\n")


def _version(named: str) -> Path | None:
    """The adapter version that --from names."""
    return None if named == "none" else Path(named)


def _check(args: argparse.Namespace) -> None:
    for name in ("epochs", "steps"):
        if (count := getattr(args, name)) is not None and count < 1:
            raise BadInputError(f"--{name} must be at least 1, not {count}")
    if args.minutes is not None and not 0 < args.minutes < 10**5:
        raise BadInputError(f"--minutes must be above 0, not {args.minutes:g}")
    if not 0 < args.share < 1:
        raise BadInputError(f"--share lies between 0 and 1, not at {args.share:g}")
    if args.out.exists() and not args.out.is_dir():
        raise BadInputError(f"'{args.out}' is a file: --out names the run's folder")


def _summary(trained: Trained) -> list[str]:
    minutes = trained.seconds / 60
    lines = [f"{trained.steps} steps in {minutes:.1f} minutes; the adapter is in {trained.candidate}"]
    if trained.metrics:
        prompted = "1 pt" in trained.metrics["after"]
        columns = ("1 pt", "3 pts", "10 pts", "box") if prompted else tuple(trained.metrics["after"])
        lines.append("Dice on held-out patients".ljust(28) + "".join(name.rjust(12) for name in columns))
        for name, values in trained.metrics.items():
            lines.append(f"  {name}".ljust(28) + "".join(f"{values[column]:12.3f}" for column in columns))
    else:
        lines.append("no held-out patient was measured: nothing is known of how good it is")
    return lines


@contextmanager
def interruptible() -> Iterator[Any]:
    """The first Ctrl-C (or SIGTERM) asks the run to stop after its step; a second one ends at once."""
    asked = threading.Event()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: object) -> None:
        asked.set()
        signal.signal(number, kept[signal.Signals(number)])

    for number in kept:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


class Bars:
    """A bar for each of the things a run does, one after another."""

    def __init__(self) -> None:
        self.what, self.text = "", ""
        self.bar: tqdm | None = None

    def told(self, what: str, part: float) -> None:
        from tqdm import tqdm

        if self.bar is None or what != self.what:
            self.close()
            shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self.what, self.bar = what, tqdm(total=1.0, desc=what, bar_format=shape, disable=None)
        self.bar.update(max(0.0, min(part, 1.0) - self.bar.n))
        if what == "training":
            self.bar.set_postfix_str(self.text)

    def report(self, now: Any) -> None:
        best = f", best Dice {now.best:.3f}" if now.best >= 0 else ""
        self.text = f"step {now.step}, loss {now.loss:.3f}{best}"

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


@contextmanager
def bars() -> Iterator[Bars]:
    bars = Bars()
    try:
        yield bars
    finally:
        bars.close()
