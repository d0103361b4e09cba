"""`medsa datasets …`: the public data sets that can be named, and whether a download of one is whole."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medsa.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medsa.datasets import Dataset
    from medsa.training.cases import Case

LIST = """\
List the public data sets whose downloads can be read as they are, by `medsa train DIR --dataset NAME` and
`medsa evaluate DIR --dataset NAME`. `show` tells where one comes from, under which terms, and how its folder
looks; `check` verifies a download. Nothing is downloaded.
"""
CHECK = """\
Verify the download of a data set in DIR: the number of images, a label for each, files that can be read, and
values that its labels may have. Ends with status 2 when something is wrong.
"""
ALL = "all"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `datasets`."""
    datasets = commands.add_parser(
        "datasets",
        help="list public data sets that can be read as downloaded, and check a download",
        description=LIST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets.set_defaults(run=_list, name=None)
    kinds = datasets.add_subparsers(title="commands", metavar="COMMAND")
    show = kinds.add_parser("show", help="origin, terms and layout of one")
    show.set_defaults(run=_show)
    show.add_argument("name", metavar="NAME")
    check = kinds.add_parser("check", help="verify a download", description=CHECK)
    check.set_defaults(run=_check)
    check.add_argument("name", metavar="NAME")
    check.add_argument("folder", metavar="DIR", type=Path)
    check.add_argument("--every", type=int, default=1, metavar="N", help="read each Nth pair alone (1)")


def add_options(group: argparse._ArgumentGroup) -> None:
    """`--dataset` and `--split` for a command that reads labelled studies."""
    group.add_argument("--dataset", metavar="NAME", help="DATA is a download of this (see `medsa datasets`)")
    group.add_argument("--split", metavar="NAME", help="an official split of it, or all")


def studies(data: Path, name: str | None, split: str | None, usual: str) -> tuple[Sequence[Case], str]:
    """The cases of DATA, as `--dataset` and `--split` mean it, and the window to look at them with.

    `usual` is the split without `--split`, where the data set has it; else all.
    """
    from medsa.datasets import find_cases, read_dataset
    from medsa.training.cases import read_cases

    if name is None:
        if split is not None:
            raise BadInputError("--split is for a --dataset, which has official ones")
        return read_cases(data), "auto"
    dataset = read_dataset(name)
    chosen = split or (usual if usual in dataset.splits else ALL)
    return find_cases(dataset, data, None if chosen == ALL else chosen), dataset.window


def named(cases: Sequence[Case], labels: Sequence[str]) -> dict[int, str]:
    """The labels that `--labels` means, as `wanted` finds them, with a bar where cases must be read."""
    from tqdm import tqdm

    from medsa.training.cases import wanted

    return wanted(cases, labels, partial(tqdm, desc="labels", unit="case", leave=False, disable=None))


def _list(_: argparse.Namespace) -> None:
    from medsa.cli_table import print_table
    from medsa.datasets import dataset_names, read_dataset

    rows = []
    for name in dataset_names():
        dataset = read_dataset(name)
        labels = ", ".join(dataset.names.values()) or "those of dataset.json"
        shown = f"{len(dataset.names)} labels" if len(labels) > 40 else labels
        rows.append(
            {"name": name, "data set": dataset.title, "modality": dataset.modality or "any"}
            | {"labels": shown, "splits": ", ".join(dataset.splits)}
        )
    print_table(rows)


def _show(args: argparse.Namespace) -> None:
    from medsa.datasets import read_dataset

    print("\n".join(_lines(read_dataset(args.name))))


def _lines(dataset: Dataset) -> list[str]:
    from medsa.datasets.spec import shown

    lines = [dataset.title, f"home: {dataset.home}", f"obtain: {dataset.obtain}", f"terms: {dataset.terms}"]
    lines += [f"note: {dataset.note}"] if dataset.note else []
    lines.append(f"modality: {dataset.modality or 'as dataset.json says'}; window: {dataset.window}")
    for label in dataset.labels:
        code = f"{label.type.value} {label.type.scheme} {label.type.meaning}"
        lines.append(f"label {label.index}: {label.name} ({code})")
    for part in dataset.parts:
        count = f", {part.count} pairs" if part.count else ""
        lines.append(f"{part.split}: {shown(part.image)} with {shown(part.label[0])}{count}")
    if dataset.kind == "decathlon":
        lines.append("train: dataset.json with imagesTr/ and labelsTr/")
    return lines


def _check(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from medsa.cli_interrupt import interrupted
    from medsa.datasets import read_dataset
    from medsa.datasets.check import check
    from medsa.errors import CancelledError

    if args.every < 1:
        raise BadInputError("--every must be at least 1")
    with tqdm(unit="pair", leave=False, disable=None) as bar:

        def progress(done: int, most: int) -> None:
            if interrupted():
                raise CancelledError(f"stopped after {done} of {most} pairs")
            bar.total = most
            bar.update(done - bar.n)

        found = check(read_dataset(args.name), args.folder, args.every, progress)
    print(*found.there, f"labels that occur: {', '.join(found.occurs) or 'none'}", sep="\n")
    if found.wrong:
        raise BadInputError("; ".join(found.wrong[:10]) + (" ..." if len(found.wrong) > 10 else ""))
    print("nothing is missing")
