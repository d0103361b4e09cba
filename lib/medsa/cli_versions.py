"""`medsa versions`: list, show, promote and take back the adapter versions of a site."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsa.training.versions import Version, VersionStore

SHOWN = ("held-out, 1 pt", "held-out, 3 pts", "held-out, auc", "held-out, box")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `medsa versions` and its actions."""
    versions = commands.add_parser(
        "versions",
        help="list, show, promote and take back the adapters that retraining made",
        description="The adapter versions of a store; a running server follows promotions and rollbacks.",
    )
    actions = versions.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name, run, what in (
        ("list", _list, "every version, the served one with an asterisk"),
        ("show", _show, "the report of one version: why it was promoted or refused, and all figures"),
        ("promote", _promote, "serve a version from now on"),
        ("rollback", _rollback, "serve again what was served before the current version"),
    ):
        action = actions.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        place = action.add_mutually_exclusive_group(required=True)
        place.add_argument("--store", type=Path, metavar="DIR", help="as the server's --conf adapters DIR")
        place.add_argument("--studies", metavar="URL|DIR", help="as the server's, if it names no adapters")
        action.add_argument("--backbone", default="lite_medsam", metavar="NAME", help="as the server's")
        action.set_defaults(run=run)
        if name in ("show", "promote"):
            action.add_argument("version", metavar="NAME", help="a version, such as v0002")
        if name == "promote":
            action.add_argument("--pin", action="store_true", help="retraining must not replace it")


def _store(args: argparse.Namespace) -> VersionStore:
    from medsa.errors import NotFoundError
    from medsa.training.versions import VersionStore, versions_folder

    folder = args.store or versions_folder(args.studies, args.backbone)
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder of versions '{folder}'")
    return VersionStore(folder)


def _list(args: argparse.Namespace) -> None:
    store = _store(args)
    pointer = store.pointer()
    rows = [
        ("", "version", "made", "method", *(name.removeprefix("held-out, ") for name in SHOWN), "decision")
    ]
    for version in map(store.get, store.names()):
        served = "*pinned" if pointer.pinned else "*"
        rows.append(
            (
                served if version.name == pointer.name else "",
                version.name,
                version.card.created.strftime("%Y-%m-%d %H:%M"),
                version.card.method.name,
                *(_figure(version, name) for name in SHOWN),
                "promoted" if version.report.get("promoted") else "refused",
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if pointer.name is None:
        print("no version is served: the server uses what it started with")


def _figure(version: Version, name: str) -> str:
    value = version.report.get("figures", {}).get(f"candidate, {name}")
    return "" if value is None else f"{value:.3f}"


def _show(args: argparse.Namespace) -> None:
    version = _store(args).get(args.version)
    report = {name: value for name, value in version.report.items() if name != "rows"}
    print(json.dumps({"version": version.name, **version.card.model_dump(mode="json"), **report}, indent=2))


def _promote(args: argparse.Namespace) -> None:
    version = _store(args).promote(args.version, pin=args.pin)
    print(f"{version.name} is served from now on{', whatever retraining brings' if args.pin else ''}")


def _rollback(args: argparse.Namespace) -> None:
    version = _store(args).rollback()
    print(f"{version.name} is served again" if version else "served again: what the server started with")
