"""The train task `medsa`: a round of retraining in a process of its own, of low priority.

`medsa retrain` runs in a session of its own. Its standard input is a pipe that ends when the server does,
however that ends; the round then ends too.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from monailabel import config
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from medsa.adapters.state import starter_adapter
from medsa.config import Options
from medsa.errors import BadInputError, MedsaError
from medsa.sam import load_sam
from medsa.server.privacy import scrubbed
from medsa.server.store import Store
from medsa.training.length import Length
from medsa.training.retrain import BusyError, Labelled, Outcome, Plan, progress_of, read_policy, retrain
from medsa.training.settings import read_settings
from medsa.training.train import Request
from medsa.training.versions import VersionStore

logger = logging.getLogger(__name__)

NAME = "medsa"
KEPT_LINES, KEPT_TASKS = 20, 20
PATIENCE = 10.0
"""Seconds that a round has to clean up after itself when it is stopped."""


def labelled(store: Store) -> list[Labelled]:
    """The images of a datastore that have a label a person made, newest label each."""

    def case(image: str, state: str) -> Labelled:
        def read() -> Any:
            found = store.newest_label(image)
            if found is None:
                raise BadInputError("this label is gone")
            mask, names = found
            return store.volume(image), mask, names

        return Labelled(image, state, read)

    return [case(image, state) for image, state in store.label_states().items()]


def one_round(
    options: Options,
    cases: Sequence[Labelled],
    *,
    again: bool,
    progress: Callable[[str, float], None] = lambda _what, _part: None,
) -> Outcome:
    """A round on `cases` as the server's options say, in this process; raises as `retrain`."""
    policy = read_policy()
    length = Length(minutes=options.retrain_minutes, steps=policy.steps)
    settings = read_settings(policy.settings)
    request = Request(options.method or None, length=length, settings=settings, window=options.window)
    return retrain(
        lambda: load_sam(options.backbone, device=options.device),
        cases,
        VersionStore(Path(options.adapters)),
        Plan(request, policy, starter_adapter(options.backbone), again),
        progress,
    )


class MedsaTrain(TrainTask):
    """What `/info/` lists, and what MONAI Label's own way of training calls: a round in this process."""

    def __init__(self, options: Options) -> None:
        super().__init__(
            "Retrains the adapter on all labels; it is served if it is better on held-out patients"
        )
        self.options = options

    def config(self) -> dict[str, Any]:
        """What a request may set."""
        return {"minutes": self.options.retrain_minutes, "again": False}

    def stats(self) -> dict[str, Any]:
        """What clients show: how far a round is, in percent, and the served version's Dice over clicks."""
        store = VersionStore(Path(self.options.adapters))
        now = progress_of(store)
        told = {"epoch": max(1, round(100 * now["part"])), "total_epochs": 100} if now else {"total_time": 1}
        with suppress(MedsaError):
            current = store.current()
            figures = current.report.get("figures", {}) if current else {}
            told["best_metric"] = figures.get("candidate, held-out, auc", 0)
        return told

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        asked = checked(request)
        options = self.options.model_copy(
            update={"retrain_minutes": asked.get("minutes", self.options.retrain_minutes)}
        )
        assert isinstance(datastore, Store)  # noqa: S101 - MedsaApp makes no other
        outcome = one_round(options, labelled(datastore), again=bool(asked.get("again")))
        return {"result": outcome.what, "reasons": list(outcome.reasons), "version": outcome.version}


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """`minutes` and `again` of a request; what clients add is left out. Raises `BadInputError`."""
    found: dict[str, Any] = {}
    minutes = params.get("minutes")
    if minutes is not None:
        if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes <= 24 * 60:
            raise BadInputError("minutes must be a number above 0 and not more than a day has, 1440")
        found["minutes"] = float(minutes)
    if "again" in params:
        if not isinstance(params["again"], bool):
            raise BadInputError("again must be true or false")
        found["again"] = params["again"]
    return found


class Training:
    """The rounds that this server started, as MONAI Label's clients know them; one runs at a time.

    `ended` is called with the status of a round, in a thread of its own, when it has ended in whatever way.
    """

    def __init__(
        self, options: Options, studies: str, ended: Callable[[Mapping[str, Any]], None] = lambda _: None
    ) -> None:
        self.options, self.studies, self.ended = options, studies, ended
        self.store = VersionStore(Path(options.adapters))
        self._lock = threading.Lock()
        self._tasks: deque[dict[str, Any]] = deque(maxlen=KEPT_TASKS)
        self._process: subprocess.Popen[str] | None = None

    @property
    def running(self) -> bool:
        """Whether a round of this server is at work."""
        return self._process is not None

    def start(self, params: Mapping[str, Any] | None = None, why: str = "asked for") -> dict[str, Any]:
        """Start a round; raises `BusyError` while one runs, `BadInputError`."""
        asked = checked(params or {})
        with self._lock:
            if self._process is not None:
                raise BusyError("a retraining is running already: wait for it to end, or stop it")
            task: dict[str, Any] = {
                "id": str(uuid.uuid4()),
                "status": "RUNNING",
                "request": {"model": NAME, "why": why, **asked},
                "start_ts": _now(),
                "details": [],
            }
            self._process = subprocess.Popen(
                self._command(asked),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**_environment(), "MONAI_LABEL_STUDIES": self.studies},
                start_new_session=True,
            )
            self._tasks.append(task)
            process = self._process
        logger.info(f"retraining starts ({why})")
        threading.Thread(target=self._follow, args=(task, process), name="retraining", daemon=True).start()
        return self._shown(task)

    def status(self, *, every: bool = False) -> Any:
        """The last round, or every one; None when there was none."""
        tasks = [self._shown(task) for task in list(self._tasks)]
        return tasks if every else (tasks[-1] if tasks else None)

    def stop(self) -> dict[str, Any] | None:
        """End the running round and all it started; its status, or None when there is none."""
        with self._lock:
            process = self._process
            if process is None:
                return None
            task = self._tasks[-1]
            task["status"] = "STOPPED"
        _end(process)
        return self._shown(task)

    def _command(self, asked: Mapping[str, Any]) -> list[str]:
        options = self.options
        command = ["nice", "-n", "10", sys.executable, "-m", "medsa.cli", "retrain", "--attached"]
        for name, value in (
            ("--adapters", options.adapters),
            ("--backbone", options.backbone),
            ("--method", options.method),
            ("--labels", options.labels),
            ("--window", options.window),
            ("--device", options.device),
            ("--minutes", str(asked.get("minutes", options.retrain_minutes))),
        ):
            command += [name, value] if value else []
        return [*command, "--again"] if asked.get("again") else command

    def _follow(self, task: dict[str, Any], process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 - it was asked for
        for line in process.stdout:
            if text := scrubbed(line.rstrip()):
                task["details"] = [*task["details"], text][-KEPT_LINES:]
                logger.info(f"retraining: {text}")
        code = process.wait()
        _end(process)
        with self._lock:
            task["end_ts"] = _now()
            if task["status"] == "RUNNING":
                task["status"] = "DONE" if code == 0 else "ERROR"
            self._process = None
        logger.info(f"retraining has ended: {task['status']}")
        self.ended(self._shown(task))

    def _shown(self, task: Mapping[str, Any]) -> dict[str, Any]:
        return {**task, "progress": progress_of(self.store)} if task["status"] == "RUNNING" else {**task}


def _environment() -> dict[str, str]:
    """Ours, without MONAI Label's settings that nobody set: its command exports even their defaults."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MONAI_LABEL_") or name in config.settings.model_fields_set
    }


def _end(process: subprocess.Popen[str]) -> None:
    """End the process group: politely, then for certain."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")  # MONAI Label's own format
