"""Scoring in the background: what active learning goes by, and how near the model's proposals came.

It runs in a thread of the server, shares its model, and lets every request go first. Each study is in the
book as soon as it is done: what was ended in whatever way goes on where it was.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from medsa.active.book import Book, Page, Proposal, hashed
from medsa.active.known import Shelf, keys_of
from medsa.active.scores import examine
from medsa.config import data_dir
from medsa.errors import BadInputError, CancelledError, MedsaError, NotFoundError, StoreUnavailableError
from medsa.evaluation.overlap import dice
from medsa.segmenter import Segmenter
from medsa.segmenter.ahead import QUIET
from medsa.segmenter.prototypes import Prototypes
from medsa.server.automatic import Automatic
from medsa.server.batch import KEPT_TASKS, ORIGINAL, read_original
from medsa.server.privacy import frames, short
from medsa.server.store import Store
from medsa.training.retrain import BusyError
from medsa.training.versions import versions_folder

logger = logging.getLogger(__name__)

UNCERTAINTY, DICE = "uncertainty", "dice"
METHODS = {
    UNCERTAINTY: "What new images look like and how unsure the model is of them; of all after a promotion",
    DICE: "How near the model's proposals came to the labels that people saved",
}
MINUTES = 60.0
"""How long scoring goes on unless it is told otherwise."""
POINTS = 200
"""Proposals that /info/ tells of, the newest."""

Step = tuple[str, Callable[[], None]]
"""An image, and what is to be done with it."""


def book_of(studies: str, backbone: str) -> Book:
    """The book of a datastore."""
    return Book(data_dir() / "active" / f"{versions_folder(studies, backbone).name}.sqlite")


class Scoring:
    """What a server's clients asked to have scored, one method at a time."""

    def __init__(self, store: Store, automatic: Automatic, shelf: Shelf) -> None:
        self.store, self.automatic, self.shelf = store, automatic, shelf
        self.book, self.runtime = shelf.book, automatic.runtime
        self._tasks: deque[dict[str, Any]] = deque(maxlen=KEPT_TASKS)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._curve: tuple[object, list[dict[str, Any]]] = (None, [])
        atexit.register(self.end)

    @property
    def running(self) -> bool:
        """Whether a method is at work."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, methods: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
        """Start methods, each with its params, one after another; returns the task of the first one.

        `minutes` bounds a method, `versions` compares with the model before any adapter, too. Raises
        `BusyError`, `NotFoundError`, `BadInputError`.
        """
        asked = {name: _checked(name, params or {}) for name, params in methods.items()}
        with self._lock:
            if self.running:
                raise BusyError("a scoring is running already: wait for it to end, or stop it")
            tasks = [
                {
                    "id": str(uuid.uuid4()),
                    "status": "PENDING",
                    "request": {"method": name, **params},
                    "start_ts": _now(),
                    "details": [],
                    "progress": {"done": 0, "total": 0},
                    "result": {},
                }
                for name, params in asked.items()
            ]
            self._tasks.extend(tasks)
            self._stop.clear()
            self._thread = threading.Thread(target=self._work, args=(tasks,), name="scoring", daemon=True)
            self._thread.start()
        return dict(tasks[0])

    def status(self, *, every: bool = False) -> Any:
        """The running one or the last one, or every one; None when there was none."""
        tasks = [dict(task) for task in list(self._tasks)]
        if every or not tasks:
            return tasks or None
        return next((task for task in tasks if task["status"] == "RUNNING"), tasks[-1])

    def stop(self) -> dict[str, Any] | None:
        """End the running one soon; its status, or None when none runs."""
        if not self.running:
            return None
        self._stop.set()
        return self.status()

    def end(self) -> None:
        """Stop, and wait for it: native code must not run on while the process ends."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """MONAI Label's own way: score, and return when all is done."""
        params = {key: value for key, value in request.items() if key in ("minutes", "versions")}
        self.start({str(request.get("method") or UNCERTAINTY): params})
        assert self._thread is not None  # noqa: S101 - it was started
        self._thread.join()
        return self.status()

    def quietly(self, minutes: float) -> None:
        """All methods, if none runs: for whoever does it on a schedule."""
        with suppress(BusyError):
            self.start({name: {"minutes": minutes} for name in METHODS})

    def curve(self) -> list[dict[str, Any]]:
        """The site's learning curve: the newest proposals in their order, and the mean of the last ten."""
        if self._curve[0] != self.book.stamp:
            stamp, means = self.book.stamp, list[float]()
            told = []
            for one in self.book.proposals():
                means.append(one.mean)
                told.append(
                    {"when": one.moment, "version": one.version, "source": one.source}
                    | {"dice": round(one.mean, 4), "last ten": round(float(np.mean(means[-10:])), 4)}
                )
            self._curve = stamp, told[-POINTS:]
        return self._curve[1]

    def _work(self, tasks: list[dict[str, Any]]) -> None:
        for task in tasks:
            task["status"], task["start_ts"] = "RUNNING", _now()
            try:
                try:
                    self._do(task)
                finally:  # whoever sees that it has ended is answered by what it found
                    self.shelf.renew(*keys_of(self.runtime.segmenter, self.runtime.options.window))
                task["status"] = "DONE"
            except CancelledError:
                task["status"] = "STOPPED"
            except MedsaError as error:
                task["status"], task["details"] = "ERROR", [str(error)]
            except Exception as error:  # noqa: BLE001 - a thread of the server must not end without a word
                logger.warning(f"the scoring failed\n{frames(error)}")
                task["status"], task["details"] = "ERROR", [f"the scoring failed ({type(error).__name__})"]
            task["end_ts"] = _now()
            logger.info(f"scoring {task['request']['method']} has ended: {task['status']}")

    def _do(self, task: dict[str, Any]) -> None:
        params = task["request"]
        ends = time.monotonic() + 60 * params["minutes"]
        steps = list(self._dice() if params["method"] == DICE else self._uncertainty(params["versions"]))
        task["progress"], failed = {"done": 0, "total": len(steps)}, 0
        for done, (image, step) in enumerate(steps, start=1):
            self._pause()
            if self._stop.is_set():
                raise CancelledError("stopped")
            if time.monotonic() > ends:
                task["details"] = [f"the minutes are over, {len(steps) - done + 1} images are left"]
                break
            try:
                step()
            except (CancelledError, StoreUnavailableError):
                raise
            except MedsaError as error:
                failed += 1
                logger.warning(f"{short(image)} is not scored ({type(error).__name__})")
            task["progress"] = {"done": done, "total": len(steps)}
        task["result"] = {"scored": task["progress"]["done"] - failed, "failed": failed}

    def _uncertainty(self, versions: bool) -> Iterator[Step]:
        """The images whose page is missing, another model's, or of labels that were not known then.

        Of labelled ones only the look is needed. New ones come in an order of no meaning, so that those that
        are done when time is over are a fair part of all.
        """
        served, segmenter = self.runtime.models.segmenter()
        encoder, model = keys_of(segmenter, self.runtime.options.window)
        other = self.runtime.models.segmenter("none")[1] if versions and served != "none" else None
        about = self.store.described()
        self.book.keep_only(about)
        labels = [label for label in self.runtime.labels.labels if self.automatic.examples.any_of(label)]
        names = frozenset(label.name for label in labels)
        pages, unlabelled = self.book.pages(), set(self.store.get_unlabeled_images())

        def done(image: str) -> bool:
            page = pages.get(hashed(image))
            if page is None or (page.encoder, page.content) != (encoder, about[image].state):
                return False
            return image not in unlabelled or (page.model == model and names <= page.asked)

        def step(image: str) -> Callable[[], None]:
            def score() -> None:
                asked = names if image in unlabelled else frozenset()
                volume = self.store.volume(image)
                found = examine(
                    segmenter,
                    volume,
                    self._prototypes(asked, image, segmenter),
                    window=self.runtime.options.window,
                    other=other,
                    pause=self._pause,
                    cancelled=self._stop.is_set,
                )
                page = Page(
                    about[image].state, encoder, found.look, model, asked, found.components, found.held
                )
                self.book.write({image: page})

            return score

        for image in sorted((image for image in about if not done(image)), key=hashed):
            yield image, step(image)

    def _prototypes(self, names: frozenset[str], image: str, segmenter: Segmenter) -> dict[str, Prototypes]:
        window, volume = self.runtime.options.window, self.store.volume(image)
        found = {
            label.name: self.automatic.examples.of(
                label, volume, segmenter, window, without=image, cancelled=self._stop.is_set
            )
            for label in self.runtime.labels.labels
            if label.name in names
        }
        return {name: one for name, one in found.items() if one is not None}

    def _dice(self) -> Iterator[Step]:
        """The labels that were not compared with a proposal yet."""
        compared = self.book.compared()
        for image, state in sorted(self.store.label_states().items()):
            if (hashed(image), hashed(state)) not in compared:
                yield image, lambda image=image, state=state: self._compare(image, state)  # type: ignore[misc]

    def _compare(self, image: str, state: str) -> None:
        """The pre-annotation against the label; without one, what the model would propose now."""
        index = {one.name: one.index for one in self.store.labels.labels}
        label, names = self.store.newest_label(image) or (None, {})
        known = {name: value for value, name in names.items() if name in index}
        if label is None or not known:
            return
        if ORIGINAL in self.store.get_labels_by_image_id(image):
            proposed, source = read_original(self.store, image, self.store.volume(image)), "original"
            version = str(self.store.get_label_info(image, ORIGINAL).get("adapter", ""))
        else:
            try:
                found = self.automatic.segment(
                    self.store.volume(image), image, list(known), cancelled=self._stop.is_set
                )
            except BadInputError:
                return  # no other labelled study shows what to look for, yet
            proposed, source, version = found.mask, "computed", found.adapter
        values = {
            name: round(dice(proposed == index[name], label == value), 4) for name, value in known.items()
        }
        self.book.propose(image, state, Proposal(_now(), version, source, values))

    def _pause(self) -> None:
        """Wait until nobody has asked the model for anything for a moment."""
        segmenter = self.runtime.segmenter
        while not self._stop.is_set():
            rest = QUIET - (time.monotonic() - max(segmenter.encoding.used, segmenter.decoding.used))
            if rest <= 0:
                return
            self._stop.wait(rest)


class Score(ScoringMethod):
    """A scoring method as MONAI Label knows it."""

    def __init__(self, scoring: Scoring, name: str) -> None:
        super().__init__(METHODS[name])
        self.scoring, self.name = scoring, name

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:  # noqa: ARG002 - stock
        return self.scoring.run({**request, "method": self.name})


def _checked(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    if name not in METHODS:
        raise NotFoundError(
            f"there is no scoring method '{name[:64]}'; this server has: {', '.join(METHODS)}"
        )
    minutes, versions = params.get("minutes", MINUTES), params.get("versions", False)
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes <= 1440:
        raise BadInputError("minutes must be a number above 0, up to 1440")
    if not isinstance(versions, bool):
        raise BadInputError("versions must be true or false")
    return {"minutes": float(minutes), "versions": versions}


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")  # MONAI Label's own format
