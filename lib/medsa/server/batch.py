"""Pre-annotation: every study without a human label gets the automatic model's, tagged "original".

What was found is noted with the image, so that a run that was ended in whatever way goes on where it was.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import DefaultLabelTag
from numpy.typing import NDArray

from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.errors import BadInputError, CancelledError, MedsaError, StoreUnavailableError
from medsa.segmenter.propagate import stop_if
from medsa.server.automatic import NAME, Automatic, Labelled
from medsa.server.noted import checked_confidences, white_in
from medsa.server.privacy import frames, short
from medsa.server.store import Store
from medsa.training.retrain import BusyError

logger = logging.getLogger(__name__)

ORIGINAL = DefaultLabelTag.ORIGINAL.value
KEPT_TASKS = 20

Cancelled = Callable[[], bool]


@dataclass(frozen=True)
class Wanted:
    """What to annotate with: `labels` (all that can be found, if none), asking `adapter` ("" the served one).

    With `again` studies that were annotated before are annotated anew.
    """

    labels: tuple[str, ...] = ()
    adapter: str = ""
    again: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a study: `confidences` 0..1 by label, 0 where nothing was found; or a `problem`."""

    image: str
    confidences: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str = ""

    @property
    def confidence(self) -> float:
        """Of the study: the least sure of what was found; 0 where nothing was."""
        return min((sure for sure in self.confidences.values() if sure), default=0.0)


def waiting(store: Store, wanted: Wanted, images: Sequence[str] | None = None) -> list[str]:
    """The images to annotate, of `images` or of all that no person has labelled; those done are left out."""
    chosen = store.get_unlabeled_images() if images is None else images
    return sorted(image for image in chosen if wanted.again or not _is_done(store, image, wanted))


def annotate(
    store: Store,
    automatic: Automatic,
    images: Sequence[str],
    wanted: Wanted,
    *,
    progress: Callable[[int, int], None] | None = None,
    cancelled: Cancelled | None = None,
) -> Iterator[Outcome]:
    """Annotate `images` one by one; each outcome is told when its label is safe.

    `progress(done, most)` counts slices of the image at hand. A study that cannot be read is a problem of its
    own; raises `CancelledError`, `StoreUnavailableError`, and `BadInputError` when no labelled study shows
    what to look for.
    """
    automatic.check(wanted.labels)
    for image in images:
        stop_if(cancelled)
        started = time.perf_counter()
        try:
            volume = store.volume(image)
            found = automatic.segment(
                volume,
                image,
                wanted.labels,
                adapter=wanted.adapter,
                progress=progress,
                cancelled=cancelled,
            )
            _keep(store, image, volume, found)
        except (CancelledError, StoreUnavailableError):
            raise
        except MedsaError as error:
            logger.warning(f"{short(image)} is not annotated ({type(error).__name__})")
            yield Outcome(image, problem=str(error), seconds=time.perf_counter() - started)
            continue
        yield Outcome(image, found.confidences, time.perf_counter() - started)


def read_original(store: Store, image: str, volume: Volume) -> NDArray[np.uint8]:
    """The pre-annotation of an image, its values indices of the label set; raises as `read_label`."""
    path, note = Path(store.get_label_uri(image, ORIGINAL)), store.get_label_info(image, ORIGINAL)
    return read_label(path, volume, store.labels, white=white_in(note))


def _is_done(store: Store, image: str, wanted: Wanted) -> bool:
    """Whether an earlier run has looked for the same labels here, and what it found is still there."""
    noted = _noted(store, image)
    if noted is None or not set(wanted.labels) <= set(noted):
        return False
    kept = ORIGINAL in store.get_labels_by_image_id(image)
    return kept or not any(noted.values())


def _noted(store: Store, image: str) -> dict[str, float] | None:
    """The confidences that earlier runs noted; None where none has run."""
    with suppress(BadInputError):
        return checked_confidences(store.get_image_info(image).get(NAME))
    return None


def _keep(store: Store, image: str, volume: Volume, found: Labelled) -> None:
    """Save a mask beside what the image's original label already says of other labels, and note both."""
    labels = store.labels
    before = _noted(store, image) or {}
    mask = _merged(store, image, volume, found)
    names = {value: labels.by_index(value).name for value in np.unique(mask).tolist() if value}
    confidences = {**before, **found.confidences}
    noted = {"confidences": confidences, "adapter": found.adapter}
    if names:
        store.save_mask(image, mask, names, ORIGINAL, {"model": NAME})
        store.update_label_info(image, ORIGINAL, noted)
    elif ORIGINAL in store.get_labels_by_image_id(image):
        store.remove_label(image, ORIGINAL)
    store.update_image_info(image, {NAME: noted})


def _merged(store: Store, image: str, volume: Volume, found: Labelled) -> NDArray[np.uint8]:
    if ORIGINAL not in store.get_labels_by_image_id(image):
        return found.mask
    kept = read_original(store, image, volume).copy(order="F")
    asked = [store.labels.by_name(name).index for name in found.confidences]
    kept[np.isin(kept, asked)] = 0
    return np.where(found.mask != 0, found.mask, kept)


class Batch:
    """The pre-annotations that a server's clients asked for, one at a time, in a thread of the server.

    It shares the server's model and embeddings, and lets clicks in between its slices.
    """

    def __init__(self, store: Store, automatic: Automatic) -> None:
        self.store, self.automatic = store, automatic
        self._tasks: deque[dict[str, Any]] = deque(maxlen=KEPT_TASKS)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        atexit.register(self.end)

    @property
    def running(self) -> bool:
        """Whether one is at work."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, images: object = None, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Start one; raises `BusyError` while one runs, `BadInputError` for what cannot be asked."""
        self._check_free()
        asked = dict(params or {})
        wanted = self._wanted(asked)
        chosen = self._images(images if images is not None else asked.get("images"), wanted, asked)
        with self._lock:
            self._check_free()
            task: dict[str, Any] = {
                "id": str(uuid.uuid4()),
                "status": "RUNNING",
                "request": {"model": NAME, **asdict(wanted), "labels": list(wanted.labels)},
                "start_ts": _now(),
                "details": [],
                "progress": {"done": 0, "total": len(chosen)},
                "result": {},
            }
            self._tasks.append(task)
            self._stop.clear()
            self._thread = threading.Thread(
                target=self._work, args=(task, chosen, wanted), name="batch", daemon=True
            )
            self._thread.start()
        return dict(task)

    def status(self, *, every: bool = False) -> Any:
        """The last one, or every one; None when there was none."""
        tasks = [dict(task) for task in list(self._tasks)]
        return tasks if every else (tasks[-1] if tasks else None)

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
        """MONAI Label's own way: annotate, and return when all is done."""
        self.start(None, request)
        assert self._thread is not None  # noqa: S101 - it was started
        self._thread.join()
        return self.status()

    def _check_free(self) -> None:
        if self.running:
            raise BusyError("a batch is running already: wait for it to end, or stop it")

    def _wanted(self, asked: Mapping[str, Any]) -> Wanted:
        labels = asked.get("labels", asked.get("label")) or ()
        names = [labels] if isinstance(labels, str) else labels
        if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
            raise BadInputError('labels must be a list of names such as ["liver"]')
        if asked.get("label_tag") not in (None, "", ORIGINAL):
            raise BadInputError(
                f"what no person has looked at is kept under the tag {ORIGINAL}, and under no other"
            )
        adapter, again = asked.get("adapter") or "", asked.get("again", False)
        if not isinstance(adapter, str) or not isinstance(again, bool):
            raise BadInputError("adapter must be a name, again true or false")
        known = tuple(self.automatic.runtime.labels.by_name(name).name for name in names)
        self.automatic.runtime.models.segmenter(adapter)
        return Wanted(known, adapter, again)

    def _images(self, images: object, wanted: Wanted, asked: Mapping[str, Any]) -> list[str]:
        if images not in (None, "all", "unlabeled") and not isinstance(images, list):
            raise BadInputError("images must be all or unlabeled, or a list of ids")
        if isinstance(images, list):
            known = set(self.store.list_images())
            if not all(isinstance(image, str) and image in known for image in images):
                raise BadInputError("images names one that the datastore does not have")
        chosen = images if isinstance(images, list) else None
        most = asked.get("max_batch_size") or None
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
            raise BadInputError("max_batch_size must be a whole number above 0")
        return waiting(self.store, wanted, chosen)[:most]

    def _work(self, task: dict[str, Any], images: Sequence[str], wanted: Wanted) -> None:
        try:
            for done, outcome in enumerate(
                annotate(self.store, self.automatic, images, wanted, cancelled=self._stop.is_set), start=1
            ):
                task["progress"] = {"done": done, "total": len(images)}
                task["result"] = {**task["result"], outcome.image: _told(outcome)}
            task["status"] = "DONE"
        except CancelledError:
            task["status"] = "STOPPED"
        except MedsaError as error:
            task["status"], task["details"] = "ERROR", [str(error)]
        except Exception as error:  # noqa: BLE001 - a thread of the server must not end without a word
            logger.warning(f"the batch failed\n{frames(error)}")
            task["status"], task["details"] = "ERROR", [f"the batch failed ({type(error).__name__})"]
        task["end_ts"] = _now()
        logger.info(f"the batch has ended: {task['status']}")


def _told(outcome: Outcome) -> dict[str, Any]:
    if outcome.problem:
        return {"problem": outcome.problem}
    return {
        "tag": ORIGINAL if any(outcome.confidences.values()) else "",
        "confidence": outcome.confidence,
        "confidences": dict(outcome.confidences),
        "seconds": round(outcome.seconds, 1),
    }


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")  # MONAI Label's own format
