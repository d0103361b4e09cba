"""Retraining as the server sees it: rounds on schedule or asked for, the version swapped, a status."""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsa.adapters.state import CARD
from medsa.config import Options
from medsa.errors import ConfigurationError, MedsaError
from medsa.server.schedule import Schedule
from medsa.server.store import Store
from medsa.server.tasks import Runtime
from medsa.server.train import Training
from medsa.training.retrain import unused
from medsa.training.versions import VersionStore, versions_folder

logger = logging.getLogger(__name__)

FOLLOW_SECONDS = 5.0
"""How soon a version that somebody promotes by hand is served."""
SHUTDOWN_SECONDS = 30.0
"""How long a server may take to end by the signal that ended its round too: systemd sends it to both."""

_DECISIONS = ("decided", "nothing done", "rolled back")


def with_versions(options: Options, studies: str) -> Options:
    """`options` with the folder of versions that belongs to the datastore, unless they name one."""
    if options.adapters:
        return options
    return options.model_copy(update={"adapters": str(versions_folder(studies, options.backbone))})


class Retraining:
    """The rounds of this server; `begin` starts the schedule. Raises `ConfigurationError`."""

    def __init__(self, options: Options, studies: str, store: Store, runtime: Runtime) -> None:
        folder = Path(options.adapters)
        if (options.retrain or options.retrain_after) and (folder / CARD).is_file():
            raise ConfigurationError(
                f"--conf adapters: {folder} is one version; to retrain, name a folder that may hold several"
            )
        self.versions = VersionStore(folder)
        self.training = Training(options, studies, self._ended)
        self.schedule = Schedule(
            folder,
            store.label_states,
            lambda states: unused(self.versions, states),
            lambda why: self.start(why=why),
            cron=options.retrain,
            after=options.retrain_after,
        )
        self.schedule.also(self._follow_quietly, FOLLOW_SECONDS)
        self._options, self._runtime = options, runtime
        self._served = self.versions.pointer().name
        self._unfit: str | None = None
        self._ending = threading.Event()

    def begin(self) -> None:
        """Follow labels and versions from now on, until the process ends."""
        self.schedule.begin()
        atexit.register(self.end)

    def end(self) -> None:
        """End the schedule and a running round, which the next start of the server begins again."""
        self._ending.set()
        self.schedule.end()
        self.training.stop()

    def start(self, params: Mapping[str, Any] | None = None, why: str = "asked for") -> dict[str, Any]:
        """Start a round; raises `BusyError`, `BadInputError`."""
        task = self.training.start(params, why)
        self.schedule.began()
        return task

    def follow(self) -> None:
        """Serve what the versions' pointer names, if it moved; a version named by the options stays."""
        name = self.versions.pointer().name
        if name == self._served or self._options.adapter:
            return
        try:
            self._runtime.serve(self.versions.get(name).folder if name else None)
            self._served = name
        except MedsaError as error:
            if name != self._unfit:
                logger.warning(f"version {name} cannot be served, the one before it stays: {error}")
            self._unfit = name

    def status(self) -> dict[str, Any]:
        """What is served, its figures, what is new since, what comes next and what was decided last."""
        try:
            current, problem = self.versions.current(), ""
        except MedsaError as error:
            current, problem = None, str(error)
        decisions = [entry for entry in self.versions.decisions() if entry["event"] in _DECISIONS]
        return {
            "version": self._runtime.served,
            "made": current.card.created.isoformat(timespec="minutes") if current else None,
            "figures": dict(current.report.get("figures", {})) if current else {},
            "problem": problem,
            **self.schedule.status(),
            "last_decision": decisions[-1] if decisions else None,
            "round": self.training.status(),
        }

    def _follow_quietly(self) -> None:
        with suppress(MedsaError):  # a damaged pointer: the status tells
            self.follow()

    def _ended(self, task: Mapping[str, Any]) -> None:
        if self._ending.wait(SHUTDOWN_SECONDS if task["status"] == "ERROR" else 0) or self.training.running:
            return  # the schedule's record still says that a round is running
        self._follow_quietly()
        self.schedule.ended()
