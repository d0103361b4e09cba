"""`medsa …`: what the server does, on files and without a server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import medsa
from medsa import (
    cli_annotate,
    cli_campaign,
    cli_compare,
    cli_datasets,
    cli_evaluate,
    cli_methods,
    cli_report,
    cli_retrain,
    cli_segment,
    cli_train,
    cli_versions,
)
from medsa.cli_interrupt import ctrl_c_is_never_lost
from medsa.cli_table import print_table
from medsa.errors import MedsaError

BAD_INPUT, INTERRUPTED, READER_GONE = 2, 130, 141

DESCRIPTION = "Interactive medical segmentation with a frozen Segment Anything Model: a click, a mask."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 2 for what a person can put right, 130 for Ctrl-C."""
    args = parser().parse_args(argv)
    try:
        with ctrl_c_is_never_lost():
            args.run(args)
        sys.stdout.flush()
    except MedsaError as error:
        print(f"medsa: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return READER_GONE
    except OSError as error:
        print(f"medsa: {error.strerror}: {error.filename or 'the output'}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("\nmedsa: stopped", file=sys.stderr)
        return INTERRUPTED
    return 0


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser("medsa", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"medsa {medsa.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    cli_segment.add(commands)
    cli_annotate.add(commands)
    cli_retrain.add(commands)
    cli_train.add(commands)
    cli_evaluate.add(commands)
    cli_campaign.add(commands)
    cli_report.add(commands)
    cli_datasets.add(commands)
    cli_compare.add(commands)
    cli_versions.add(commands)
    backbones = commands.add_parser(
        "backbones",
        help="list the foundation models: parameters, input size, licence, where their weights are",
        description="List the foundation models that --backbone may name.",
    )
    backbones.set_defaults(run=_backbones)
    cli_methods.add(commands)
    return top


def _backbones(_: argparse.Namespace) -> None:
    from medsa.sam import backbone_table

    print_table(backbone_table())


if __name__ == "__main__":
    sys.exit(main())
