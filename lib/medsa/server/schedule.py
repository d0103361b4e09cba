"""When a server retrains: at the times of a cron line, and after so many newly labelled images.

Labels are found by looking at the datastore now and then, so that it does not matter which client saved them.
What has to survive a restart is in one small file beside the versions: when the next round is due, and which
labels were there when the last one began.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from medsa.errors import ConfigurationError, MedsaError
from medsa.files import write_atomically
from medsa.server.privacy import frames
from medsa.training.retrain import BusyError

logger = logging.getLogger(__name__)

POLL_SECONDS, IDLE_SECONDS = 30.0, 300.0
"""How often labels are looked for: when their number may start a round, and when it is only told."""
STATE = "schedule.json"
_CRON = re.compile(r"cron:\s*(\S.*)")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")
"""What cron's numbers mean; APScheduler's own begin with Monday."""

States = Mapping[str, str]
"""Labelled images, and a word for each that changes with its label."""


def cron_of(spec: str) -> CronTrigger | None:
    """The times that `retrain` of the options names, "cron: MINUTE HOUR DAY MONTH WEEKDAY"; None for none.

    Raises `ConfigurationError`.
    """
    if not spec.strip():
        return None
    match = _CRON.fullmatch(spec.strip())
    try:
        if match is None:
            raise ValueError
        *times, weekday = match[1].split()
        weekday = re.sub(r"(?<![/\d])[0-7]\b", lambda day: _WEEKDAYS[int(day[0])], weekday)
        return CronTrigger.from_crontab(" ".join([*times, weekday]))
    except ValueError:
        raise ConfigurationError(
            f"--conf retrain: '{spec}' is no schedule; write it as \"cron: 0 2 * * *\": minute, hour, day of "
            "the month, month, day of the week"
        ) from None


class _OneByOne(BaseExecutor):
    """Runs jobs one after another in one thread, which the process need not wait for when it ends."""

    def start(self, scheduler: BackgroundScheduler, alias: str) -> None:
        super().start(scheduler, alias)
        self._waiting: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        threading.Thread(target=self._work, name="schedule", daemon=True).start()

    def shutdown(self, wait: bool = True) -> None:  # noqa: ARG002 - APScheduler's signature
        self._waiting.put((None, None))

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        self._waiting.put((job, run_times))

    def _work(self) -> None:
        while (item := self._waiting.get())[0] is not None:
            job, run_times = item
            self._run_job_success(job.id, run_job(job, job._jobstore_alias, run_times, self._logger.name))


class Schedule:
    """Starts rounds by calling `start(why)`, which may raise `BusyError`.

    `states` asks the datastore for its labels, `unused` tells which images of them have a label that no
    round has used. With `after`, a round starts when so many images have one that was not there when the last
    round began; at the times of `cron`, when there is at least one. A round that was due or running while the
    server was down is caught up with at the next start. All of it happens in one thread, which ends with the
    process.
    """

    def __init__(
        self,
        folder: Path,
        states: Callable[[], States],
        unused: Callable[[States], Sequence[str]],
        start: Callable[[str], object],
        *,
        cron: str = "",
        after: int = 0,
        poll: float = POLL_SECONDS,
    ) -> None:
        self._path, self._states, self._unused, self._start = folder / STATE, states, unused, start
        self.cron, self.after = cron_of(cron), after
        self._poll = poll if after else max(poll, IDLE_SECONDS)
        self._writing, self._asked = threading.Lock(), threading.Event()
        self._labels: States = {}
        self._new: Sequence[str] = ()
        self._problem = ""
        self._kept: dict[str, Any] = {"running": False, "begun": [], "due": None, "cron": str(self.cron)}
        self._scheduler = BackgroundScheduler(
            executors={"default": _OneByOne()},
            job_defaults={"coalesce": True, "misfire_grace_time": None},
        )
        logging.getLogger("apscheduler").setLevel(logging.ERROR)

    def begin(self) -> None:
        """Look at the datastore from now on; catch up with what was missed."""
        before, now = self._read(), datetime.now().astimezone()
        self._keep(begun=before.get("begun", []), running=bool(before.get("running")))
        if self.cron is not None:
            due = self.cron.get_next_fire_time(None, now)
            if before.get("due") and before.get("cron") == str(self.cron):
                due = min(due, datetime.fromisoformat(before["due"]))
            self._keep(due=due.isoformat())
            self._scheduler.add_job(self._on_time, self.cron, id="cron", next_run_time=due)
        self._scheduler.add_job(self.look, "interval", seconds=self._poll, id="look", next_run_time=now)
        if before.get("running"):
            self._scheduler.add_job(self._begin_round, args=["interrupted by a restart"])
        self._scheduler.start()

    def end(self) -> None:
        """No more rounds."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    def also(self, job: Callable[[], object], seconds: float) -> None:
        """Do this now and then, too."""
        self._scheduler.add_job(job, "interval", seconds=seconds)

    def look_now(self) -> None:
        """A label was saved: do not wait for the next look."""
        if self._scheduler.running and not self._asked.is_set():
            self._asked.set()
            self._scheduler.add_job(self.look)

    def look(self) -> None:
        """Ask for the labels, and start a round when enough are new."""
        self._asked.clear()
        try:
            self._labels = self._states()
            self._new = self._unused(self._labels)
        except MedsaError as error:
            self._complain(str(error))
        except Exception as error:  # noqa: BLE001 - a store may fail in any way; the next look may not
            self._complain(frames(error))
        else:
            self._problem = ""
            since = [image for image in self._new if self._word(image) not in set(self._kept["begun"])]
            if self.after and len(since) >= self.after:
                self._begin_round(f"{len(since)} images newly labelled")

    def _complain(self, problem: str) -> None:
        """Once, however often it is met."""
        if problem != self._problem:
            logger.warning(f"the labels cannot be counted: {problem}")
        self._problem = problem

    def began(self) -> None:
        """A round has begun, by whatever cause, with the labels that were there at the last look."""
        self._keep(running=True, begun=[self._word(image) for image in self._labels])

    def ended(self) -> None:
        """A round has ended, however."""
        self._keep(running=False)
        self.look_now()

    def status(self) -> dict[str, Any]:
        """Labelled images in all, those that no round has used, and when the next round is due."""
        return {
            "labels": len(self._labels),
            "new_labels": len(self._new),
            "next_run": self._kept["due"],
            "retrain_after": self.after,
        }

    def _on_time(self) -> None:
        assert self.cron is not None  # noqa: S101 - this is its job
        self._keep(due=self.cron.get_next_fire_time(None, datetime.now().astimezone()).isoformat())
        self.look()
        if self._new:
            self._begin_round("on time")
        else:
            logger.info("retraining is due, but no label is new")

    def _begin_round(self, why: str) -> None:
        try:
            self._start(why)
        except BusyError:
            logger.info(f"retraining ({why}) waits: a round is running")
        except MedsaError as error:
            logger.warning(f"retraining ({why}) cannot start: {error}")

    def _word(self, image: str) -> str:
        return hashlib.sha256(f"{image} {self._labels.get(image)}".encode(errors="replace")).hexdigest()[:16]

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._path.read_text("utf-8")))
        except (OSError, ValueError):
            return {}

    def _keep(self, **changed: Any) -> None:
        with self._writing:
            self._kept = {**self._kept, **changed}
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._kept).encode())
