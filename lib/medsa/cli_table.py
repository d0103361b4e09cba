"""Rows of text in columns."""

from __future__ import annotations

from collections.abc import Sequence


def print_table(rows: Sequence[dict[str, str]], right: Sequence[str] = ()) -> None:
    """Print rows of the same keys under their keys; the columns in `right` are aligned right."""
    columns = list(rows[0])
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    for row in ({name: name for name in columns}, *rows):
        cells = (
            row[name].rjust(widths[name]) if name in right else row[name].ljust(widths[name])
            for name in columns
        )
        print("  ".join(cells).rstrip())
