"""`medsa campaign`: which strategy saves clicks, tried by a simulated annotator."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsa.cli_interrupt import interrupted
from medsa.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

DESCRIPTION = """\
Try strategies of active learning against random, with a simulated annotator.

DATA is as for `medsa train`. Some patients are held out. Each run labels studies batch by batch as its
strategy picks them (an object costs the clicks it takes to reach Dice 0.9, ten at most), retrains after each
batch, and is measured on the held-out patients. Runs of one seed begin with the same studies. The folder OUT
grows round by round: the same command goes on where it was stopped.
"""
EXAMPLES = """\
examples:
  medsa campaign hippocampus/ --out campaign/first --labels 1,2 --no-gate --steps 60
  medsa campaign hippocampus/ --out quick/ --strategies random,uncertainty --seeds 2 --budget 12 --held-out 6
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `medsa campaign`."""
    campaign = commands.add_parser(
        "campaign",
        help="try active-learning strategies against random",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    campaign.set_defaults(run=_campaign)
    campaign.add_argument("data", metavar="DATA", type=Path)
    campaign.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="where runs, campaign.json and report.html go"
    )
    tried = campaign.add_argument_group("what is tried")
    tried.add_argument(
        "--strategies",
        default="random,foreground_random,uncertainty,diversity,hybrid,class_balanced",
        metavar="A,B",
        help="of random, first, foreground_random, uncertainty, diversity, hybrid, class_balanced",
    )
    tried.add_argument("--seeds", type=int, default=4, metavar="N", help="runs of each strategy (4)")
    tried.add_argument("--start", type=int, default=4, metavar="N", help="studies labelled at first (4)")
    tried.add_argument("--batch", type=int, default=4, metavar="N", help="studies a round (4)")
    tried.add_argument("--budget", type=int, default=40, metavar="N", help="studies in all (40)")
    tried.add_argument("--held-out", type=int, default=12, metavar="N", help="patients measured on (12)")
    tried.add_argument("--labels", default="", metavar="A,B", help="names or values (default: all)")
    tried.add_argument("--every", type=int, default=1, metavar="N", help="each Nth study alone (1)")
    tried.add_argument(
        "--slices", type=int, default=1, metavar="N", help="slices annotated of each label (1)"
    )
    model = campaign.add_argument_group("model and training")
    model.add_argument("--backbone", default="lite_medsam", metavar="NAME", help="see `medsa backbones`")
    model.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint of one's own for it")
    model.add_argument("--image-size", type=int, metavar="S", help="pixels a side that it sees (its own)")
    model.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    model.add_argument(
        "--method",
        default="decoder_only",
        metavar="NAME",
        help="what is trained (decoder_only: the encoder's embeddings are then computed once for all runs)",
    )
    model.add_argument(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="the version to begin with, or none (default: the one that comes with the backbone)",
    )
    model.add_argument("--steps", type=int, default=60, metavar="N", help="training steps a round (60)")
    model.add_argument("--settings", default="default", metavar="NAME", help="a file of configs/training")
    model.add_argument(
        "--no-gate",
        action="store_true",
        help="train on all labelled studies and use every candidate; else some patients validate and the "
        "promotion gate decides, as in the server (without its set against forgetting)",
    )


def _campaign(args: argparse.Namespace) -> None:
    for name in ("seeds", "start", "batch", "budget", "held_out", "every", "slices", "steps", "image_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInputError(f"--{name.replace('_', '-')} must be at least 1")

    from tqdm import tqdm

    from medsa.active.campaign import Campaign, Design
    from medsa.active.campaign_page import page, summed
    from medsa.active.strategies import strategy
    from medsa.adapters.state import starter_adapter
    from medsa.config import Options
    from medsa.errors import CancelledError
    from medsa.files import write_atomically
    from medsa.sam import load_sam
    from medsa.segmenter.served import NONE
    from medsa.training import cases as studies
    from medsa.training.length import Length
    from medsa.training.settings import read_settings
    from medsa.training.train import Request

    names = tuple(dict.fromkeys(name for name in args.strategies.split(",") if name))
    for name in names:
        strategy(name)
    options = Options.from_conf({"backbone": args.backbone, "device": args.device, "method": args.method})
    cases = studies.read_cases(args.data)[:: args.every]
    asked = [name for name in args.labels.split(",") if name]
    origin = None if args.adapter == Path(NONE) else args.adapter or starter_adapter(options.backbone)
    settings = read_settings(args.settings)
    request = Request(options.method, length=Length(steps=args.steps), settings=settings)
    design = Design(
        names,
        args.seeds,
        args.start,
        args.batch,
        args.budget,
        args.held_out,
        args.slices,
        studies.wanted(cases, asked) if asked else {},
        request,
        origin,
        not args.no_gate,
    )
    sam = load_sam(options.backbone, device=options.device, weights=args.weights, image_size=args.image_size)
    with tqdm(total=len(names) * args.seeds * design.rounds, unit="round", leave=False, disable=None) as bar:

        def told(what: str) -> None:
            if interrupted():
                raise CancelledError("stopped: the same command goes on")
            bar.set_description(what)
            bar.update()

        campaign = Campaign(sam, cases, design, args.out, told)
        before = campaign.before()
        runs = campaign.run()
    summary = summed(runs, before)
    said = {
        "data": f"{len(cases)} studies, {len(campaign.held_out)} of them held out",
        "model": f"{options.backbone} at {sam.image_size} pixels, {options.method}, "
        f"from {origin.name if origin else 'the base'}",
        "runs": f"{args.seeds} seeds; {args.start} studies, then {args.batch} a round up to {args.budget}",
        "training": f"{args.steps} steps a round, {'no gate' if args.no_gate else 'with the gate'}",
    }
    figures = json.dumps({"said": said, **summary, "runs": runs}, indent=1, allow_nan=False)
    write_atomically(args.out / "campaign.json", figures.encode())
    write_atomically(args.out / "report.html", page(runs, summary, said).encode())
    _print(summary)
    print(f"wrote {args.out / 'campaign.json'} and {args.out / 'report.html'}")


def _print(summary: Mapping[str, Any]) -> None:
    from medsa.active.campaign_page import better_than_random
    from medsa.cli_table import print_table

    columns = ("area over studies", "area over clicks", "first batch", "last batch", "last batch, frozen")
    print_table(
        [
            {"strategy": name} | {column: f"{values[column]['mean']:.3f}" for column in columns}
            for name, values in summary["strategies"].items()
        ],
        right=columns,
    )
    winners = better_than_random(summary)
    print(f"better than random beyond chance: {', '.join(winners) or 'none'}")
