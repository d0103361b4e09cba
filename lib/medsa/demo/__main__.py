"""`python -m medsa.demo`: what `make demo` runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from medsa.demo.run import FOLDER, prove, show
from medsa.errors import MedsaError

BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo or prove it; exit status 0, 2 for what a person can put right, 130 for a stopped check."""
    parser = argparse.ArgumentParser(
        "python -m medsa.demo",
        description="Orthanc with demo studies and medsa's server, to be seen in a browser. Ctrl-C ends all.",
    )
    parser.add_argument(
        "--check", action="store_true", help="do what a person would do, print Dice and latency"
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="the server's port; a free one when it is taken"
    )
    parser.add_argument("--folder", type=Path, help="for studies and logs (.demo; --check: a passing one)")
    args = parser.parse_args(argv)
    try:
        if args.check:
            prove(args.folder, args.port)
        else:
            show(args.folder or FOLDER, args.port)
    except KeyboardInterrupt:
        print("\nended", flush=True)
        return INTERRUPTED if args.check else 0
    except MedsaError as error:
        print(f"\nmedsa demo: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
