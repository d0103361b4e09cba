"""`medsa retrain`: one round of retraining from a datastore, for cron, systemd, Kubernetes and the server."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from medsa.config import Options

if TYPE_CHECKING:
    from medsa.training.retrain import Labelled

DESCRIPTION = """\
One round of retraining: all labels that people made become a candidate adapter, which is measured on
patients that never train. It is served from then on if it is better by more than its noise, still listens to
prompts and has lost nothing; otherwise the served version stays. Without a new label nothing is done.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `medsa retrain`."""
    retrain = commands.add_parser(
        "retrain",
        help="train on a datastore's labels and serve the result if it is better",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    retrain.set_defaults(run=_retrain)
    known = Options.model_fields
    retrain.add_argument(
        "--studies",
        default=os.environ.get("MONAI_LABEL_STUDIES"),
        metavar="URL|DIR",
        help="the server's --studies (MONAI_LABEL_STUDIES)",
    )
    retrain.add_argument(
        "--adapters", metavar="DIR", help="the server's --conf adapters: where versions are kept"
    )
    for name in ("backbone", "method", "labels", "window", "device"):
        default = known[name].default
        retrain.add_argument(f"--{name}", default=default, metavar="NAME", help=known[name].description)
    retrain.add_argument(
        "--minutes",
        type=float,
        default=known["retrain_minutes"].default,
        help="how long to train (%(default)g)",
    )
    retrain.add_argument("--again", action="store_true", help="also when no label is new")
    retrain.add_argument("--attached", action="store_true", help="end when standard input ends")


def _retrain(args: argparse.Namespace) -> None:
    if args.attached:
        threading.Thread(target=_end_with_input, daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)

    from medsa.errors import BadInputError
    from medsa.server.train import one_round
    from medsa.training.allocator import keep_freed_memory
    from medsa.training.versions import versions_folder

    if not args.studies:
        raise BadInputError("where are the labels? --studies names a DICOMweb store or a folder")
    names = ("backbone", "method", "labels", "window", "device")
    options = Options.from_conf(
        {name: getattr(args, name) for name in names} | {"retrain_minutes": str(args.minutes)}
    )
    folder = args.adapters or str(versions_folder(args.studies, options.backbone))
    options = options.model_copy(update={"adapters": folder})
    keep_freed_memory()
    print("looking for labels", flush=True)
    with _shown() as progress:
        outcome = one_round(options, _labels(args.studies, options), again=args.again, progress=progress)
    named = f"{outcome.version} is " if outcome.version else ""
    done = {"promoted": "served from now on", "refused": "not served", "nothing": "nothing done"}[
        outcome.what
    ]
    print(f"{named}{done}: {'; '.join(outcome.reasons)}", flush=True)


def _labels(studies: str, options: Options) -> list[Labelled]:
    from medsa.data.labels import load_labels
    from medsa.server.stores import open_store
    from medsa.server.train import labelled

    return labelled(open_store(studies, load_labels(options.labels)))


@contextmanager
def _shown() -> Iterator[Callable[[str, float], None]]:
    """Progress as a bar on a terminal, as a line now and then elsewhere."""
    from tqdm import tqdm

    last = ("", -1.0)
    with tqdm(total=100, unit="%", leave=False, disable=None) as bar:

        def progress(what: str, part: float) -> None:
            nonlocal last
            bar.set_description(what)
            bar.update(round(100 * part) - bar.n)
            if bar.disable and (what != last[0] or part >= last[1] + 0.1):
                last = what, part
                print(f"{what}: {100 * part:.0f} %", flush=True)

        yield progress


def _end_with_input() -> NoReturn:
    """Whoever started this has ended: so does this, with all that it started."""
    while os.read(0, 1 << 10):
        continue
    os.killpg(0, signal.SIGKILL)
    sys.exit()


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    """As Ctrl-C: what lies around is cleaned up."""
    raise KeyboardInterrupt
