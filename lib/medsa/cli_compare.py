"""`medsa compare`: methods side by side, trained and asked alike, in one report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsa.cli_datasets import named, studies
from medsa.errors import BadInputError, CancelledError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from medsa.comparison.compare import Data
    from medsa.comparison.figures import Figures
    from medsa.comparison.plan import Plan
    from medsa.training.cases import Case

NONE = "none"

COMPARE = """\
Train and measure several methods under one budget, on the same patients, and write one report.

CONFIG says which methods, how long each may train, what is asked, and what a paper found; configs/experiments
holds the protocols of the papers. Everything is kept in one folder: the same command goes on where it was
stopped. The report is its report.md, .json and .html; the page shows slices of patients: do not give it on,
or make it with --no-overlays.
"""

EXAMPLES = """\
examples:
  medsa compare configs/experiments/small_methods.yaml --data hippocampus/ --minutes 10 --output runs/methods
  medsa compare configs/experiments/med_sa_table1.yaml --data BTCV/ --backbone lite_medsam --output runs/btcv
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `compare`."""
    compare = commands.add_parser(
        "compare",
        help="train and measure methods side by side, in one report",
        description=COMPARE,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.set_defaults(run=_compare)
    compare.add_argument("config", metavar="CONFIG", type=Path, help="a YAML file")
    compare.add_argument("--data", type=Path, required=True, metavar="DIR", help="as for `medsa train`")
    compare.add_argument(
        "--dataset",
        metavar="NAME",
        help="what DIR is a download of, or none (default: what CONFIG says; see `medsa datasets`)",
    )
    compare.add_argument(
        "--output", type=Path, metavar="DIR", help="for all that is kept (default: runs/CONFIG)"
    )
    compare.add_argument("--no-overlays", action="store_true", help="no slice of a patient in the page")
    other = compare.add_argument_group("instead of what CONFIG says")
    other.add_argument("--backbone", metavar="NAME", help="for all, see `medsa backbones`")
    other.add_argument("--image-size", type=int, metavar="S", help="pixels a side that the models see")
    other.add_argument("--labels", metavar="A,B", help="names or values of the labels, or 1=NAME")
    other.add_argument("--seeds", type=int, metavar="N", help="trainings of each; more may follow later")
    other.add_argument("--settings", metavar="NAME", help="a file of configs/training")
    other.add_argument("--cases", type=int, metavar="N", help="held-out cases that are measured, at most")
    length = other.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, metavar="M", help="of training for each")
    length.add_argument("--steps", type=int, metavar="N", help="of training for each")
    length.add_argument("--epochs", type=int, metavar="N", help="of training for each")
    compare.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")


def _compare(args: argparse.Namespace) -> None:
    from medsa.comparison.plan import read_plan

    plan = _changed(read_plan(args.config), args)
    args.output = args.output or Path("runs", args.config.stem)
    if args.output.exists() and not args.output.is_dir():
        raise BadInputError(f"'{args.output}' is a file: --output names a folder")

    from medsa.cli_train import bars, interruptible
    from medsa.comparison.cards import write_cards
    from medsa.comparison.compare import Comparison
    from medsa.comparison.figures import figures_of
    from medsa.comparison.overlays import overlays
    from medsa.comparison.plots import plots
    from medsa.config import Options
    from medsa.sam import load_sam
    from medsa.training.allocator import keep_freed_memory

    options = Options.from_conf({"backbone": plan.backbone, "device": args.device})
    data = _data(plan, args)
    print(f"{len(data.training)} studies train, {len(data.held)} are held out", flush=True)
    keep_freed_memory()
    with interruptible() as stop, bars() as bar:
        comparison = Comparison(
            plan, data, args.output, device=options.device, load=load_sam,
            told=lambda who, what, part: bar.told(f"{who}: {what}", part), report=bar.report, stop=stop,
        )  # fmt: skip
        try:
            results = comparison.go()
        except CancelledError:
            print("medsa: stopped; the same command goes on where it was", flush=True)
            raise KeyboardInterrupt from None
        figures = figures_of(comparison, results)
        write_cards(comparison, results)
        pictures = plots(figures)
        if not args.no_overlays:
            pictures["Best, median and worst (labels green, answers magenta)"] = overlays(comparison, results)
    _write(args.output, figures, pictures)


def _changed(plan: Plan, args: argparse.Namespace) -> Plan:
    """The plan with what the command line says instead."""
    from medsa.comparison.plan import plan_of

    content: dict[str, Any] = plan.model_dump(mode="json")
    for name in ("minutes", "steps", "epochs"):
        if (value := getattr(args, name)) is not None:
            content["budget"] = {name: value}
    if args.backbone is not None:
        content["backbone"] = args.backbone
        for entrant in content["entrants"]:
            entrant["backbone"] = None
    if args.image_size is not None:
        content["image_size"] = args.image_size
    if args.seeds is not None:
        content["seeds"] = args.seeds
    if args.settings is not None:
        content["settings"] = args.settings
    if args.labels is not None:
        content["labels"] = [name for name in args.labels.split(",") if name]
    if args.cases is not None:
        content["asked"]["cases"] = args.cases
    return plan_of(content, args.config.name)


def _data(plan: Plan, args: argparse.Namespace) -> Data:
    """The studies: the official split "train" of a data set learns and "test" is held out, if it has both."""
    from medsa.comparison.compare import Data
    from medsa.datasets import read_dataset
    from medsa.training.cases import Nameless, fingerprint
    from medsa.training.splits import Splits

    name = plan.data if args.dataset is None else args.dataset
    name = None if name in ("", NONE) else name
    official = name is not None and {"train", "test"} <= set(read_dataset(name).splits)
    cases, window = studies(args.data, name, "train" if official else None, "")
    labels = named(cases, [str(label) for label in plan.labels])
    args.output.mkdir(mode=0o700, parents=True, exist_ok=True)
    splits = Splits(args.output / "splits.json", plan.share, alike=True)

    def nameless(found: Iterable[Case]) -> list[Nameless]:
        return [Nameless(splits.hashed(one.id), splits.hashed(one.patient), one.read) for one in found]

    if official:
        held, _ = studies(args.data, name, "test", "")
        return Data(nameless(cases), nameless(held), labels, window, fingerprint([*cases, *held]))
    sides = splits.assign(case.patient for case in cases)
    training, rest = (
        [case for case in cases if sides[case.patient] == side] for side in ("training", "validation")
    )
    if not training or not rest:
        raise BadInputError("a comparison needs two patients at least: one to learn from, one held out")
    return Data(nameless(training), nameless(rest), labels, window, fingerprint(cases))


def _write(output: Path, figures: Figures, pictures: dict[str, bytes]) -> None:
    from medsa.cli_table import print_table
    from medsa.comparison.report import as_markdown, as_page, tables
    from medsa.files import write_atomically

    for name, content in (
        ("report.json", json.dumps(figures, indent=1)),
        ("report.md", as_markdown(figures)),
        ("report.html", as_page(figures, pictures)),
    ):
        write_atomically(output / name, content.encode())
    dice = tables(figures)[0]
    print(dice.title)
    print_table([dict(zip(dice.head, row, strict=True)) for row in dice.rows])
    print(f"wrote {output / 'report.md'}, .json and .html")
