"""`medsa report`: a site's own learning curve, as a page."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from medsa.config import Options
from medsa.errors import BadInputError

DESCRIPTION = """\
Draw how near the model's proposals came to the labels that people saved in a datastore, over time.

The server compares them when it is asked to (POST /scoring/dice), or by itself with --conf score_minutes.
"""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `medsa report`."""
    report = commands.add_parser(
        "report",
        help="a site's learning curve: proposals against labels",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.set_defaults(run=_report)
    report.add_argument(
        "--studies",
        default=os.environ.get("MONAI_LABEL_STUDIES"),
        metavar="URL|DIR",
        help="the server's --studies (MONAI_LABEL_STUDIES)",
    )
    report.add_argument(
        "--html", type=Path, default=Path("report.html"), metavar="FILE", help="the page (report.html)"
    )
    report.add_argument(
        "--backbone", default=Options.model_fields["backbone"].default, metavar="NAME", help="the server's"
    )


def _report(args: argparse.Namespace) -> None:
    if not args.studies:
        raise BadInputError("whose curve? --studies names a DICOMweb store or a folder, as for the server")
    from medsa.cli_segment import check_output

    check_output(args.html, (".html",))

    from medsa.active.site_page import by_version, site_page
    from medsa.cli_table import print_table
    from medsa.files import write_atomically
    from medsa.server.scoring import book_of

    options = Options.from_conf({"backbone": args.backbone})
    proposals = book_of(args.studies, options.backbone).proposals()
    if not proposals:
        raise BadInputError(
            "nothing was compared yet: save labels, then ask the server with POST /scoring/dice, or start it "
            "with --conf score_minutes 10"
        )
    print_table(
        [
            {"version": version, "labels": str(count), "mean Dice": f"{mean:.3f}"}
            for version, count, mean in by_version(proposals)
        ],
        right=("labels", "mean Dice"),
    )
    write_atomically(args.html, site_page(proposals).encode())
    print(f"wrote {args.html}")
