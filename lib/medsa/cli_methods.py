"""`medsa methods` and `medsa params`: what each method adds to a backbone, counted without its weights."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from medsa.cli_table import print_table

if TYPE_CHECKING:
    from medsa.adapters.method import Method


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The two commands."""
    methods = commands.add_parser(
        "methods",
        help="list the ways to adapt a backbone: what they train, their slabs and prompts",
        description="List the methods that --method may name, counted on a backbone. Nothing is downloaded.",
    )
    methods.set_defaults(run=_methods)
    params = commands.add_parser(
        "params",
        help="count the parameters of a method on a backbone, by place",
        description="Count what a method trains on a backbone, by place. Nothing is downloaded.",
    )
    params.set_defaults(run=_params)
    params.add_argument("--method", required=True, metavar="NAME", help="see `medsa methods`")
    params.add_argument("--json", action="store_true", help="print a JSON object")
    for command in (methods, params):
        command.add_argument(
            "--backbone", default="lite_medsam", metavar="NAME", help="see `medsa backbones`"
        )


def _counts(backbone: str, methods: list[Method]) -> list[dict[str, Any]]:
    """`AdaptedSam.counts` of every method, on tensors without content."""
    import torch

    from medsa.adapters.inject import adapt
    from medsa.sam import build_sam

    with torch.device("meta"):
        sam = build_sam(backbone)
        return [adapt(sam, method).counts() for method in methods]


def _params(args: argparse.Namespace) -> None:
    from medsa.adapters.method import read_method

    method = read_method(args.method)
    [counts] = _counts(args.backbone, [method])
    if args.json:
        print(json.dumps({"backbone": args.backbone, "method": method.name, **counts}))
        return
    print(f"{method.title} on {args.backbone}")
    rows = {"total": counts["total"], "trained": counts["trained"], **counts["parts"]}
    for name, number in rows.items():
        percent = 100 * number / counts["total"]
        print(f"{name if name in ('total', 'trained') else '  ' + name:20}{number:>14,}{percent:9.3f} %")


def _methods(args: argparse.Namespace) -> None:
    from medsa.adapters.method import read_methods

    methods = read_methods()
    rows = [
        {
            "name": method.name,
            "title": method.title,
            "trained": f"{counts['trained']:,}",
            "percent": f"{counts['trained_percent']:.2f} %",
            "slab": "1 slice" if method.depth == 1 else f"{method.depth} slices",
            "prompts": "points, boxes" if method.prompts else "none: all classes at once",
        }
        for method, counts in zip(methods, _counts(args.backbone, methods), strict=True)
    ]
    print_table(rows, right=("trained", "percent"))
