"""What a run measures on its way: history.csv, its plot, and on request TensorBoard and MLflow."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsa.files import write_atomically

Row = Mapping[str, float]
LOSS = ("loss",)
REDRAWN = 20.0
"""Seconds between two drawings of the plot; at the end it is drawn in any case."""


class History:
    """The rows so far, one an epoch; `record` adds one and writes all that is kept of them into `folder`.

    `tensorboard` puts its events into folder/tensorboard, `mlflow` is a folder of local files that
    `mlflow ui` reads; nothing leaves the machine.
    """

    def __init__(
        self,
        folder: Path,
        rows: Sequence[Row] = (),
        *,
        tensorboard: bool = False,
        mlflow: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.rows: list[Row] = list(rows)
        self._drawn = time.monotonic()
        self._writer: Any = None
        self._mlflow: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"))
        if mlflow is not None:
            self._mlflow = _start_mlflow(mlflow, folder.name, settings or {})

    def record(self, row: Row) -> None:
        """Add a row: "step", "epoch", "seconds", "rate", "loss" and Dice by prompt, whichever there are."""
        self.rows.append(row)
        write_atomically(self.folder / "history.csv", as_csv(self.rows))
        if time.monotonic() - self._drawn > REDRAWN:
            self._draw()
        values = {name: value for name, value in row.items() if name != "step"}
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, int(row["step"]))
        if self._mlflow is not None:
            self._mlflow.log_metrics(
                {_plain(name): value for name, value in values.items()}, int(row["step"])
            )

    def _draw(self) -> None:
        write_atomically(self.folder / "history.png", plot(self.rows))
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Draw the plot as it is now, and end what writes beside the run's own files."""
        self._draw()
        if self._writer is not None:
            self._writer.close()
        if self._mlflow is not None:
            self._mlflow.end_run()


def as_csv(rows: Sequence[Row]) -> bytes:
    """A table with a line a row; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer := io.StringIO(), columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    return buffer.getvalue().encode()


def plot(rows: Sequence[Row]) -> bytes:
    """PNG: the loss on the left, Dice by prompt on the right, over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves = dict.fromkeys(
        name for row in rows for name in row if name.endswith(("pt", "pts", "box", "no prompt", "slices on"))
    )
    for axes, names, title in ((left, LOSS, "training loss"), (right, tuple(curves), "validation Dice")):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    right.set_ylim(0, 1)
    if curves:
        right.legend(loc="lower right")
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=110)
    return buffer.getvalue()


def _start_mlflow(folder: Path, name: str, settings: Mapping[str, Any]) -> Any:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    import mlflow

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder.resolve() / 'mlflow.db'}")
    if mlflow.get_experiment_by_name("medsa") is None:
        mlflow.create_experiment("medsa", artifact_location=(folder.resolve() / "artifacts").as_uri())
    mlflow.set_experiment("medsa")
    mlflow.start_run(run_name=name)
    mlflow.log_params({_plain(key): str(value)[:500] for key, value in settings.items()})
    return mlflow


def _plain(name: str) -> str:
    return name.replace(" ", "_")
