"""`medsa evaluate`: what a model makes of the simulated annotator's prompts, in figures."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from medsa.cli_datasets import add_options, named, studies
from medsa.cli_interrupt import interrupted
from medsa.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from medsa.evaluation.evaluate import Entry, Wanted
    from medsa.evaluation.protocol import Case
    from medsa.sam.promptable import Promptable
    from medsa.segmenter import Segmenter
    from medsa.training.cases import Case as Study

EVALUATE = """\
Ask a model with the prompts of the simulated annotator, and compare its masks with the labels.

DATA is as for `medsa train`. Clicks: the first anywhere on the object (by seed) or at its deepest point, each
further one at the deepest point of the largest wrong region. Boxes: tight, or with an IoU of 0.75 or 0.5 with
the tight one. noc: clicks needed for Dice 0.85 and 0.9, failures counted at the cap. Controls: background is
a click far away, which should not give the object; off is the same without the adapter; forgetting is a set
that no adapter was taught. Patients whose studies taught --adapter are left out, as long as it lies in its
run's folder. A version without prompts (ma_sam) is measured on the same objects, unasked: the
prompt "none". The record beside FILE grows: the same command goes on where it was stopped; without
--json and --html the table is all, and there is nothing to go on with.
"""

EXAMPLES = """\
examples:
  medsa evaluate hippocampus/ --labels 1,2 --slices 2 --json zero-shot.json --adapter none
  medsa evaluate hippocampus/ --adapter runs/first/candidate --seeds 3 --json first.json
  medsa evaluate hippocampus/ --adapter runs/a/candidate --controls all --wrong runs/b/candidate --json c.json
  medsa evaluate hippocampus/ --volumes --prompts 1,5,box --deepest --json volumes.json
  medsa evaluate others/ --adapter runs/first/candidate --json h.json --card "Hippocampus, T1 MR"
"""

PROMPTS = "1,3,10,box,box0.75,box0.5,noc"
CONTROLS = ("background", "off", "forgetting")
PROMPTED = ("deepest", "anywhere", "slabs", "unnamed", "raw", "wrong", "method")
LARGEST = 2048  # pixels a side that images are enlarged to, at most


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
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="where the figures go")
    evaluate.add_argument("--html", type=Path, metavar="FILE", help="the same as a page to look at")
    evaluate.add_argument(
        "--card", metavar="TITLE", help="add Dice to the model card of --adapter, under this title"
    )
    what = evaluate.add_argument_group("what is asked")
    add_options(what)
    what.add_argument(
        "--prompts", default=PROMPTS, metavar="LIST", help=f"clicks, boxes by IoU, and noc ({PROMPTS})"
    )
    what.add_argument("--seeds", type=int, default=1, metavar="N", help="times it is asked (1)")
    what.add_argument("--deepest", action="store_true", help="first clicks at the deepest point")
    what.add_argument(
        "--anywhere", action="store_true", help="further clicks anywhere in the largest wrong region"
    )
    what.add_argument("--labels", default="", metavar="A,B", help="names or values, or 1=NAME (default: all)")
    what.add_argument("--slices", type=int, default=2, metavar="N", help="slices of each label and case (2)")
    what.add_argument("--volumes", action="store_true", help="whole volumes instead of slices")
    what.add_argument(
        "--slabs", action="store_true", help="a model with depth sees slices in slabs, as in volumes"
    )
    what.add_argument(
        "--taught",
        action="store_true",
        help="ask about patients who taught --adapter, too: no proof of anything",
    )
    what.add_argument("--every", type=int, default=1, metavar="N", help="each Nth case alone (1)")
    what.add_argument(
        "--pixels",
        type=int,
        default=0,
        metavar="N",
        help="the longest side that smaller images are enlarged to first",
    )
    what.add_argument(
        "--tolerance", type=float, default=2.0, metavar="MM", help="of the surface Dice, nsd (2)"
    )
    what.add_argument("--window", metavar="SPEC", help="as for `segment` (default: the data set's, or auto)")
    what.add_argument(
        "--raw", action="store_true", help="the model by itself: what it is not taught does not help it"
    )
    what.add_argument(
        "--afresh", action="store_true", help="with --raw: further clicks without the mask before them"
    )
    what.add_argument(
        "--unnamed", action="store_true", help="labels are not told to an adapter that has learnt them"
    )
    control = evaluate.add_argument_group("controls")
    control.add_argument(
        "--controls", default="background", metavar="LIST", help="of background,off,forgetting, or all, none"
    )
    control.add_argument("--wrong", type=Path, metavar="DIR", help="a version that was taught something else")
    model = evaluate.add_argument_group("model")
    model.add_argument("--backbone", default="lite_medsam", metavar="NAME", help="see `medsa backbones`")
    model.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint of one's own for it")
    model.add_argument("--adapter", type=Path, metavar="DIR", help="a version, or none; default: the starter")
    model.add_argument("--method", metavar="NAME", help="an untrained method: what it sees at its start")
    model.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")


def _evaluate(args: argparse.Namespace) -> None:
    from medsa.cli_segment import check_output
    from medsa.data.window import check_window
    from medsa.evaluation.asking import Protocol

    protocol = Protocol.of(args.prompts, deepest=args.deepest, tolerance=args.tolerance)
    controls = _controls(args.controls)
    for name in ("seeds", "slices", "every"):
        if getattr(args, name) < 1:
            raise BadInputError(f"--{name} must be at least 1")
    if not 0 <= args.pixels <= LARGEST:
        raise BadInputError(f"--pixels must be 0 (as they are) to {LARGEST}")
    if not 0 <= args.tolerance < float("inf"):
        raise BadInputError("--tolerance must be a distance in mm, 0 or more")
    if args.raw and args.volumes:
        raise BadInputError("--raw asks about slices: a model by itself knows no volumes")
    if args.afresh and not args.raw:
        raise BadInputError("--afresh goes with --raw: the runtime itself refines the mask before")
    if args.card is not None:
        _check_card(args)
    check_window(args.window or "auto")
    for path, ending in ((args.json, ".json"), (args.html, ".html")):
        if path:
            check_output(path, (ending,))

    from tqdm import tqdm

    from medsa.errors import CancelledError
    from medsa.evaluation.evaluate import Wanted, figures_of
    from medsa.evaluation.page import page
    from medsa.evaluation.unasked import UNASKED
    from medsa.files import write_atomically
    from medsa.training.cases import fingerprint

    cases, window = studies(args.data, args.dataset, args.split, "test")
    if not args.taught:
        cases = _untaught(cases, args.adapter)
    cases, window = cases[:: args.every], args.window or window
    asked = [name for name in args.labels.split(",") if name]
    labels = named(cases, asked) if asked else {}
    protocol = replace(
        protocol,
        raw=args.raw,
        afresh=args.afresh,
        slabs=args.slabs,
        anywhere=args.anywhere,
        background="background" in controls,
    )
    slices = None if args.volumes else args.slices
    wanted = Wanted(
        protocol, {}, args.seeds, slices, labels, window, not args.unnamed, args.pixels, fingerprint(cases)
    )
    unasked = _takes_no_prompts(args)
    kept = args.json or args.html
    with ExitStack() as stack:
        folder = kept.parent if kept else Path(stack.enter_context(TemporaryDirectory()))
        record = folder / f".{kept.name if kept else 'figures'}.record"
        bar = stack.enter_context(tqdm(total=len(cases), unit="case", leave=False, disable=None))

        def progress(done: int, most: int) -> None:
            if interrupted():
                goes_on = ": the same command goes on" if kept else ""
                raise CancelledError(f"stopped after {done} of {most} cases{goes_on}")
            bar.total = most
            bar.update(done - bar.n)

        measure = _measured_unasked if unasked else _measured
        model, entries = measure(args, cases, wanted, record, progress, controls)
    measured = {entry["case"] for entry in entries if "control" not in entry}
    if not measured:
        record.unlink(missing_ok=True)
        raise BadInputError("no case holds an object of these labels that is large enough to be asked for")
    figures = {
        "model": model,
        "protocol": {
            "prompts": UNASKED if unasked else args.prompts,
            "seeds": args.seeds,
            "deepest": args.deepest,
            "anywhere": args.anywhere,
            "slices": slices,
            "pixels": args.pixels,
            "tolerance": args.tolerance,
            "cases": len(cases),
            "without": len(cases) - len(measured),
            "dataset": args.dataset,
            "split": args.split,
            "every": args.every,
            "labels": list(labels.values()),
            "raw": args.raw,
            "afresh": args.afresh,
            "slabs": args.slabs,
            "named": not args.unnamed,
            "taught": args.taught,
            "window": window,
        },
        **figures_of(entries),
    }
    if args.json:
        write_atomically(args.json, json.dumps(figures, indent=1).encode())
    if args.html:
        write_atomically(args.html, page(figures).encode())
    if args.card is not None:
        _add_to_card(args, figures)
    record.unlink(missing_ok=True)
    _print(figures)
    if without := figures["protocol"]["without"]:
        print(f"{without} of {len(cases)} cases have no object that is large enough to be asked for")
    if kept:
        print(f"wrote {' and '.join(str(path) for path in (args.json, args.html) if path)}")


def _measured(
    args: argparse.Namespace,
    cases: Sequence[Case],
    wanted: Wanted,
    record: Path,
    progress: Callable[[int, int], None],
    controls: Sequence[str],
) -> tuple[dict[str, str], list[Entry]]:
    """What answered, and the entries of a model that is asked with prompts."""
    from medsa.cli_segment import open_segmenter
    from medsa.evaluation.evaluate import evaluate
    from medsa.evaluation.forgetting import FORGETTING

    segmenter = open_segmenter(args)
    others = _others(segmenter, args, controls)
    model = _named(segmenter.sam)
    kept = FORGETTING if "forgetting" in controls else ()
    wanted = replace(wanted, model=model)
    return model, evaluate(segmenter, cases, wanted, record, progress, others=others, forgetting=kept)


def _measured_unasked(
    args: argparse.Namespace,
    cases: Sequence[Case],
    wanted: Wanted,
    record: Path,
    progress: Callable[[int, int], None],
    _controls: Sequence[str],
) -> tuple[dict[str, str], list[Entry]]:
    """What answered, and the entries of a model that takes no prompts."""
    from medsa.config import Options
    from medsa.evaluation.unasked import evaluate_unasked
    from medsa.sam import load_sam
    from medsa.training.classes import promptless

    device = Options.from_conf({"backbone": args.backbone, "device": args.device}).device
    classifier = promptless(load_sam(args.backbone, device=device, weights=args.weights), args.adapter)
    model = _named(classifier.model)
    return model, evaluate_unasked(classifier, cases, replace(wanted, model=model), record, progress)


def _named(sam: Promptable) -> dict[str, str]:
    """What tells a model from others."""
    from medsa.sam.precision import is_fast

    return {
        "backbone": sam.config.name,
        "digest": sam.digest,
        "adapter": sam.adapter_digest,
        "precision": "bfloat16" if sam.accelerated and is_fast(sam.dense_pe.device) else "float32",
    }


def _untaught(cases: Sequence[Study], adapter: Path | None) -> Sequence[Study]:
    """What is left of the cases without the patients who taught the adapter; a line says how many went."""
    from medsa.segmenter.served import NONE
    from medsa.training.untaught import untaught

    if adapter in (None, Path(NONE)):
        return cases
    left = untaught(cases, adapter)
    if not left:
        raise BadInputError(
            f"all {len(cases)} cases are of patients who taught {adapter}: give others, or --taught"
        )
    if len(left) < len(cases):
        print(f"{len(cases) - len(left)} of {len(cases)} cases are of patients who taught it: left out")
    return left


def _takes_no_prompts(args: argparse.Namespace) -> bool:
    """Whether --adapter segments unasked; raises `BadInputError` for options that it cannot follow then."""
    from medsa.adapters.state import read_card
    from medsa.segmenter.served import NONE

    if args.adapter in (None, Path(NONE)) or read_card(args.adapter).method.prompts:
        return False
    ignored = [name for name in PROMPTED if getattr(args, name)]
    if ignored or args.prompts != PROMPTS or args.seeds > 1 or args.controls not in ("background", "none"):
        raise BadInputError(
            "the adapter takes no prompts: --prompts, --seeds, --controls and "
            f"{', '.join(f'--{name}' for name in PROMPTED)} say nothing to it"
        )
    return True


def _controls(text: str) -> tuple[str, ...]:
    if text in ("all", "none"):
        return CONTROLS if text == "all" else ()
    named = tuple(word for word in text.split(",") if word)
    if unknown := [word for word in named if word not in CONTROLS]:
        raise BadInputError(f"unknown control '{unknown[0]}': take some of {','.join(CONTROLS)}, all or none")
    return named


def _others(segmenter: Segmenter, args: argparse.Namespace, controls: Sequence[str]) -> dict[str, Segmenter]:
    """The models that are asked as controls, by name; they share the embeddings that are the same."""
    from medsa.adapters.inject import AdaptedSam
    from medsa.adapters.state import load_adapter
    from medsa.sam import Sam

    sam, found = segmenter.sam, dict[str, "Segmenter"]()
    base = sam.base if isinstance(sam, AdaptedSam) else sam
    if "off" in controls and base is not sam:
        found["off"] = segmenter.beside(base)
    elif "off" in controls and args.controls != "all":
        raise BadInputError("there is no adapter that could be switched off: leave the control off out")
    if args.wrong and isinstance(base, Sam):
        wrong = load_adapter(base, args.wrong)
        if base.accelerated:
            wrong.accelerate()
        found["wrong"] = segmenter.beside(wrong)
    return found


def _check_card(args: argparse.Namespace) -> None:
    from medsa.segmenter.served import NONE
    from medsa.training.model_card import NAME

    if args.adapter in (None, Path(NONE)) or not (args.adapter / NAME).is_file():
        raise BadInputError(f"--card goes with --adapter DIR, the folder of a version with its {NAME}")
    if not args.card.strip() or "\n" in args.card:
        raise BadInputError("--card is a title: one line of text")


def _add_to_card(args: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    from medsa.comparison.report import said
    from medsa.training.model_card import add_figures

    asked, summary = figures["protocol"], figures["summary"]
    words = [
        f"--{name}" for name in ("deepest", "anywhere", "raw", "afresh", "slabs", "taught") if asked[name]
    ]
    words += [f"--pixels {args.pixels}"] if args.pixels else []
    words += ["--volumes" if args.volumes else f"--slices {args.slices}", f"--seeds {args.seeds}"]
    by_prompt = {said(name): values["dice"] for name, values in summary.items() if name != "numbers"}
    what = f"`medsa evaluate {' '.join(words)}` on {asked['cases']} cases"
    add_figures(args.adapter, args.card, what, by_prompt)


def _print(figures: Mapping[str, Any]) -> None:
    from medsa.cli_table import print_table
    from medsa.evaluation.evaluate import span
    from medsa.evaluation.metrics import METRICS

    prompts = {name: values for name, values in figures["summary"].items() if name != "numbers"}
    rows = [
        {"prompt": name}
        | {metric: f"{values[metric]['mean']:.3f}" for metric in METRICS}
        | {"dice, 95 %": span(values["dice"])}
        | {"n": str(values["dice"]["n"]), "ms": f"{figures['milliseconds'][name]:.0f}"}
        for name, values in prompts.items()
    ]
    if rows:
        print_table(rows, right=[*METRICS, "n", "ms"])
    for name, value in figures["summary"].get("numbers", {}).items():
        print(f"{name}: {value['mean']:.3f} ({span(value)})")
    if "encode" in figures["milliseconds"]:
        print(f"a slice is encoded in {figures['milliseconds']['encode']:.0f} ms, once for all its prompts")
    for name, summary in figures.get("controls", {}).items():
        numbers = {word: value["mean"] for word, value in summary.get("numbers", {}).items()}
        dice = {word: values["dice"]["mean"] for word, values in summary.items() if word != "numbers"}
        print(f"{name}: " + ", ".join(f"{word} {mean:.3f}" for word, mean in {**dice, **numbers}.items()))
