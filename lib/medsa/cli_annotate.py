"""`medsa annotate`: every study that nobody has labelled gets what the automatic model finds."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from medsa.cli_table import print_table
from medsa.config import Options
from medsa.errors import BadInputError

if TYPE_CHECKING:
    from medsa.server.batch import Outcome

DESCRIPTION = """\
Look for labels in every study that nobody has labelled, by what the labelled studies look like, and keep what
is found under the tag "original": it is offered for correction, and is never counted as a person's label nor
trained on. Each label is safe as soon as its study is done; a run that was ended goes on where it was.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `medsa annotate`."""
    annotate = commands.add_parser(
        "annotate",
        help="pre-annotate the studies that nobody has labelled",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    annotate.set_defaults(run=_annotate)
    known = Options.model_fields
    annotate.add_argument(
        "--studies",
        default=os.environ.get("MONAI_LABEL_STUDIES"),
        metavar="URL|DIR",
        help="the server's --studies (MONAI_LABEL_STUDIES)",
    )
    annotate.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="NAME",
        help="what to look for; may be repeated (default: every label that some study has)",
    )
    annotate.add_argument("--again", action="store_true", help="also the studies that were done before")
    annotate.add_argument(
        "--adapters", default="", metavar="DIR", help="the server's --conf adapters: where versions are kept"
    )
    for name in ("adapter", "backbone", "labels", "window", "device"):
        annotate.add_argument(
            f"--{name}", default=known[name].default, metavar="NAME", help=known[name].description
        )


def _annotate(args: argparse.Namespace) -> None:
    if not args.studies:
        raise BadInputError("where are the studies? --studies names a DICOMweb store or a folder")

    from tqdm import tqdm

    from medsa.cli_interrupt import interrupted
    from medsa.server.automatic import Automatic
    from medsa.server.batch import Wanted, annotate, waiting
    from medsa.server.retraining import with_versions
    from medsa.server.stores import open_store
    from medsa.server.tasks import Runtime

    names = ("adapters", "adapter", "backbone", "labels", "window", "device")
    options = with_versions(Options.from_conf({name: getattr(args, name) for name in names}), args.studies)
    runtime = Runtime(options)
    store = open_store(args.studies, runtime.labels)
    wanted = Wanted(tuple(runtime.labels.by_name(name).name for name in args.label), again=args.again)
    automatic = Automatic(runtime, store, args.studies)
    automatic.check(wanted.labels)
    images = waiting(store, wanted)
    outcomes: list[Outcome] = []
    try:
        with tqdm(total=len(images), unit="study", leave=False, disable=None) as bar:

            def progress(done: int, most: int) -> None:
                bar.set_postfix_str(f"slice {done} of {most}")

            for outcome in annotate(
                store, automatic, images, wanted, progress=progress, cancelled=interrupted
            ):
                outcomes.append(outcome)
                bar.update()
    finally:
        _tell(outcomes, len(images))


def _tell(outcomes: list[Outcome], waiting: int) -> None:
    """A line a study, the least sure first: those are worth a look."""
    if outcomes:
        rows = [
            {
                "study": outcome.image,
                "confidence": f"{outcome.confidence:.2f}" if outcome.confidence else "-",
                "found": _found(outcome),
                "seconds": f"{outcome.seconds:.0f}",
            }
            for outcome in sorted(outcomes, key=lambda outcome: (outcome.confidence, outcome.image))
        ]
        print_table(rows, right=("confidence", "seconds"))
    left = waiting - len(outcomes)
    print(
        f"{len(outcomes)} studies looked through, {sum(bool(one.confidence) for one in outcomes)} annotated"
        + (f", {left} left: the same command goes on" if left else "")
    )


def _found(outcome: Outcome) -> str:
    if outcome.problem:
        return outcome.problem
    return ", ".join(f"{name} {sure:.2f}" for name, sure in outcome.confidences.items() if sure) or "nothing"
