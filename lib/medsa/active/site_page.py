"""A site's learning curve as one HTML file: how near the model's proposals came to what people saved."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from medsa.active.book import Proposal
from medsa.evaluation.page import STYLE

LAST = 10
"""Proposals whose mean is drawn as the line."""


def by_version(proposals: Sequence[Proposal]) -> list[tuple[str, int, float]]:
    """(version, proposals, mean Dice) of each adapter version, in the order of their first proposals."""
    found: dict[str, list[float]] = {}
    for one in proposals:
        found.setdefault(one.version or "unknown", []).append(one.mean)
    return [(version, len(values), float(np.mean(values))) for version, values in found.items()]


def site_page(proposals: Sequence[Proposal]) -> str:
    """The page; `proposals` are in the order of their moments."""
    rows = "".join(
        f"<tr><td>{html.escape(version)}</td><td>{count}</td><td>{mean:.3f}</td></tr>"
        for version, count, mean in by_version(proposals)
    )
    buffer = BytesIO()
    _figure(proposals).savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    picture = base64.b64encode(buffer.getvalue()).decode()
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>medsa report</title>'
        f"<style>{STYLE}</style>\n<h1>What the model proposed, and what people saved</h1>\n"
        f"<p>{len(proposals)} labels, compared with the proposal that was there before them, or with what "
        "the model proposed when they were saved.\n"
        f'<p><img alt="Learning curve" src="data:image/png;base64,{picture}">\n'
        "<table><tr><th>adapter version</th><th>labels</th><th>mean Dice</th></tr>"
        f"{rows}</table>\n</html>\n"
    )


def _figure(proposals: Sequence[Proposal]) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    moments: list[Any] = [datetime.fromisoformat(one.moment) for one in proposals]
    means = [one.mean for one in proposals]
    for source, marker in (("original", "o"), ("computed", "x")):
        at = [n for n, one in enumerate(proposals) if one.source == source]
        if at:
            axes.plot([moments[n] for n in at], [means[n] for n in at], marker, alpha=0.5, label=source)
    late = [float(np.mean(means[max(0, n + 1 - LAST) : n + 1])) for n in range(len(means))]
    axes.plot(moments, late, label=f"mean of the last {LAST}")
    axes.set(ylim=(0, 1.02), ylabel="Dice of proposal and label")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.autofmt_xdate()
    return figure
