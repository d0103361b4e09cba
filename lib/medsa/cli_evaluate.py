"""`medsa evaluate`: what a model makes of the simulated annotator's prompts, in figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsa.cli_interrupt import interrupted
from medsa.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

EVALUATE = """\
Ask a model with the prompts of the simulated annotator, and compare its masks with the labels.

DATA is as for `medsa train`. Clicks: the first anywhere on the object (by seed) or at its deepest point, each
further one at the deepest point of the largest wrong region. Boxes: tight, or with an IoU of 0.75 or 0.5 with
the tight one. noc: clicks needed for Dice 0.85 and 0.9, failures counted at the cap. The record beside FILE
grows case by case: the same command goes on where it was stopped.
"""

EXAMPLES = """\
examples:
  medsa evaluate hippocampus/ --labels 1,2 --slices 2 --json zero-shot.json --adapter none
  medsa evaluate hippocampus/ --adapter runs/first/candidate --seeds 3 --json first.json
  medsa evaluate hippocampus/ --volumes --prompts 1,5,box --deepest --json volumes.json
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `evaluate`."""
    evaluate = commands.add_parser(
        "evaluate",
        help="measure a model with simulated clicks and boxes",
        description=EVALUATE,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluate.set_defaults(run=_evaluate)
    evaluate.add_argument("data", metavar="DATA", type=Path)
    evaluate.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the figures go")
    evaluate.add_argument("--html", type=Path, metavar="FILE", help="the same as a page to look at")
    what = evaluate.add_argument_group("what is asked")
    what.add_argument("--prompts", default="1,3,10,box,box0.75,box0.5,noc", metavar="LIST")
    what.add_argument("--seeds", type=int, default=1, metavar="N", help="times it is asked (1)")
    what.add_argument("--deepest", action="store_true", help="first clicks at the deepest point")
    what.add_argument("--labels", default="", metavar="A,B", help="names or values (default: all)")
    what.add_argument("--slices", type=int, default=2, metavar="N", help="slices of each label and case (2)")
    what.add_argument("--volumes", action="store_true", help="whole volumes instead of slices")
    what.add_argument("--every", type=int, default=1, metavar="N", help="each Nth case alone (1)")
    what.add_argument(
        "--tolerance", type=float, default=2.0, metavar="MM", help="of the surface Dice, nsd (2)"
    )
    model = evaluate.add_argument_group("model")
    model.add_argument("--backbone", default="lite_medsam", metavar="NAME", help="see `medsa backbones`")
    model.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint of one's own for it")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="a version, or none; default: the starter")
    model.add_argument("--method", metavar="NAME", help="an untrained method: what it sees at its start")
    model.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")


def _evaluate(args: argparse.Namespace) -> None:
    from medsa.cli_segment import check_output
    from medsa.evaluation.asking import Protocol

    protocol = Protocol.of(args.prompts, deepest=args.deepest, tolerance=args.tolerance)
    for name in ("seeds", "slices", "every"):
        if getattr(args, name) < 1:
            raise BadInputError(f"--{name} must be at least 1")
    if not 0 <= args.tolerance < float("inf"):
        raise BadInputError("--tolerance must be a distance in mm, 0 or more")
    check_output(args.json, (".json",))
    if args.html:
        check_output(args.html, (".html",))

    from tqdm import tqdm

    from medsa.cli_segment import open_segmenter
    from medsa.errors import CancelledError
    from medsa.evaluation.evaluate import Wanted, by_label, evaluate, milliseconds, summary
    from medsa.evaluation.page import page
    from medsa.files import write_atomically
    from medsa.training import cases as studies

    cases = studies.read_cases(args.data)[:: args.every]
    asked = [name for name in args.labels.split(",") if name]
    labels = studies.wanted(cases, asked) if asked else {}
    segmenter = open_segmenter(args)
    sam = segmenter.sam
    model = {"backbone": sam.config.name, "digest": sam.digest, "adapter": sam.adapter_digest}
    wanted = Wanted(protocol, model, args.seeds, None if args.volumes else args.slices, labels)
    record = args.json.with_name(f".{args.json.name}.record")
    with tqdm(total=len(cases), unit="case", leave=False, disable=None) as bar:

        def progress(done: int, most: int) -> None:
            if interrupted():
                raise CancelledError(f"stopped after {done} of {most} cases: the same command goes on")
            bar.update(done - bar.n)

        entries = evaluate(segmenter, cases, wanted, record, progress)
    if not entries:
        raise BadInputError("no case holds an object of these labels that is large enough to be asked for")
    figures = {
        "model": model,
        "protocol": {"prompts": args.prompts, "seeds": args.seeds, "deepest": args.deepest}
        | {"slices": wanted.slices, "tolerance": args.tolerance, "cases": len(cases)},
        "summary": summary(entries),
        "labels": by_label(entries),
        "cases": [{name: value for name, value in entry.items() if name != "ms"} for entry in entries],
        "milliseconds": milliseconds(entries),
    }
    write_atomically(args.json, json.dumps(figures, indent=1).encode())
    if args.html:
        write_atomically(args.html, page(figures).encode())
    record.unlink()
    _print(figures)
    print(f"wrote {args.json}{f' and {args.html}' if args.html else ''}")


def _print(figures: Mapping[str, Any]) -> None:
    from medsa.cli_table import print_table
    from medsa.evaluation.metrics import METRICS

    prompts = {name: values for name, values in figures["summary"].items() if name != "numbers"}
    rows = [
        {"prompt": name}
        | {metric: f"{values[metric]['mean']:.3f}" for metric in METRICS}
        | {"dice, 95 %": f"{values['dice']['low']:.3f} to {values['dice']['high']:.3f}"}
        | {"n": str(values["dice"]["n"]), "ms": f"{figures['milliseconds'][name]:.0f}"}
        for name, values in prompts.items()
    ]
    if rows:
        print_table(rows, right=[*METRICS, "n", "ms"])
    for name, value in figures["summary"].get("numbers", {}).items():
        print(f"{name}: {value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})")
