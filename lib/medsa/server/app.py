"""The MONAI Label app: medsa's models over a DICOMweb store or a folder of images."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask

import medsa
from medsa.active.known import Shelf, keys_of
from medsa.active.strategies import STRATEGIES
from medsa.config import Options, cache_dir
from medsa.data.labels import Label
from medsa.errors import BadInputError, MedsaError, NotFoundError
from medsa.server import platform, privacy
from medsa.server.added_labels import add
from medsa.server.automatic import NAME as AUTOMATIC
from medsa.server.automatic import Automatic, AutomaticTask
from medsa.server.batch import Batch
from medsa.server.datastore import DicomWebStore
from medsa.server.folder import FolderStore
from medsa.server.leases import Leases
from medsa.server.offers import Offered, Offers
from medsa.server.retraining import Retraining, with_versions
from medsa.server.scoring import METHODS, Score, Scoring, book_of
from medsa.server.store import FINAL
from medsa.server.stores import open_store
from medsa.server.tasks import ClickTask, Runtime, Task
from medsa.server.train import NAME, MedsaTrain
from medsa.server.uploads import Uploads

logger = logging.getLogger(__name__)

_COUNTS_LIVE = 5.0
_CLEAN_EVERY = _SCORED_EVERY = 300.0


class MedsaApp(MONAILabelApp):
    """What `monailabel start_server` and its background tasks instantiate.

    `studies`: URL of a DICOMweb store, or a folder. `conf`: the `--conf` pairs, see `medsa.config.Options`.
    What cannot start ends the process with one sentence.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str] | None) -> None:
        os.umask(0o077)
        try:
            platform.check()
            self.options = with_versions(Options.from_conf(conf or {}), studies)
            self.runtime = Runtime(self.options)
            super().__init__(
                app_dir=app_dir,
                studies=studies,
                conf={},
                name="medsa",
                description="One click or box, one mask: adapters on a frozen Segment Anything Model",
                version=medsa.__version__,
                labels=list(self.runtime.labels.names.values()),
            )
            self.counts = Counts(self._datastore.status)
            self.retraining = Retraining(self.options, studies, self._datastore, self.runtime)
            if self.options.score_minutes:
                self.retraining.schedule.also(self._score, _SCORED_EVERY)
            server = platform.running_server()
            if server is not None:
                platform.check(platform.RELIED_ON_WHEN_SERVING)
                from medsa.server.serving import install  # needs the FastAPI app, which only the server has

                install(server, self)
        except MedsaError as error:
            platform.give_up(error)

    @property
    def store(self) -> DicomWebStore | FolderStore:
        return self._datastore

    @property
    def store_is_local(self) -> bool:
        """True when the images lie in a folder of this machine."""
        return isinstance(self._datastore, FolderStore)

    @property
    def trainers(self) -> dict[str, Any]:
        return self._trainers

    @property
    def scorers(self) -> dict[str, Any]:
        return self._scoring_methods

    @property
    def uploads(self) -> Uploads:
        """Images sent for a while; raises `NotFoundError` when MONAI_LABEL_SESSIONS is off."""
        if self._sessions is None:
            raise NotFoundError("this server takes no images for a session (MONAI_LABEL_SESSIONS is off)")
        return self._sessions

    def task(self, model: str) -> Task:
        """The model of that name; raises `NotFoundError` naming those there are."""
        task = self._infers.get(model)
        if task is None:
            raise NotFoundError(
                f"there is no model '{model[:64]}'; this server has: {', '.join(self._infers)}"
            )
        return task

    def init_datastore(self) -> Datastore:
        return open_store(self.studies, self.runtime.labels)

    def init_infers(self) -> dict[str, InferTask]:
        self.automatic = Automatic(self.runtime, self._datastore, self.studies)
        return {
            "medsa_2d": ClickTask(self.runtime, 2),
            "medsa_3d": ClickTask(self.runtime, 3),
            AUTOMATIC: AutomaticTask(self.automatic),
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        return {NAME: MedsaTrain(self.options)}

    def init_strategies(self) -> dict[str, Strategy]:
        book = book_of(self.studies, self.options.backbone)
        self.shelf = Shelf(book)
        self.leases = Leases(60 * self.options.lease_minutes, book.path.with_suffix(".offers.json"))
        offers = Offers(self._datastore, self.runtime, self.shelf, self.leases)
        return {name: Offered(offers, chooser) for name, chooser in STRATEGIES.items()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        self.scoring_here = Scoring(self._datastore, self.automatic, self.shelf)
        return {name: Score(self.scoring_here, name) for name in METHODS}

    def init_batch_infer(self) -> Callable[..., Any]:
        self.batch = Batch(self._datastore, self.automatic)
        return self._batch_here

    def _batch_here(self, request: Mapping[str, Any], *_: object) -> dict[str, Any]:
        """MONAI Label's own way to run a batch: in this process, until it is done."""
        if request.get("model") != AUTOMATIC:
            raise no_batch()
        return self.batch.run(request)

    def _load_sessions(self, load: bool = False) -> Uploads | None:
        if not load:
            return None
        given = str(settings.MONAI_LABEL_SESSION_PATH).strip()
        return Uploads(
            Path(given) if given else cache_dir() / "sessions", settings.MONAI_LABEL_SESSION_EXPIRY
        )

    def info(self) -> dict[str, Any]:
        """What clients ask first; never waits for the datastore."""
        return {
            "name": self.name,
            "description": self.description,
            "version": self.version,
            "labels": list(self.runtime.labels.names.values()),
            "models": {name: task.info() for name, task in self._infers.items()},
            "trainers": {name: task.info() for name, task in self._trainers.items()},
            "strategies": {name: task.info() for name, task in self._strategies.items()},
            "scoring": {name: task.info() for name, task in self._scoring_methods.items()},
            "train_stats": {name: task.stats() for name, task in self._trainers.items()},
            "datastore": self.counts.now(),
            "retraining": self.retraining.status(),
            "learning_curve": self.scoring_here.curve(),
            "options": {**self.options.shown(), "adapter": self.runtime.served},
        }

    def add_label(self, name: str) -> Label:
        """The label of this name, made when there is none; raises `BadInputError`."""
        labels = add(self.runtime.labels, Path(self.options.adapters), name)
        self.runtime.labels = self.store.labels = labels
        return labels.by_name(" ".join(name.split()))

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name = request.get("strategy") or "random"
        strategy = self._strategies.get(name)
        if strategy is None:
            raise NotFoundError(
                f"there is no strategy '{name}'; this server has: {', '.join(self._strategies)}"
            )
        return strategy(request, self._datastore) or {}

    def on_init_complete(self) -> None:
        """The server's own start: load the model now, compile and clean up in the background."""
        try:
            _ = self.runtime.segmenter
        except MedsaError as error:
            platform.give_up(error)
        threading.Thread(target=self._warm_up, name="warm-up").start()
        threading.Thread(target=self._keep_house, name="housekeeping", daemon=True).start()
        self.retraining.begin()
        gc.collect()
        gc.freeze()  # a million objects of libraries that stay: not looked through while somebody waits
        logger.info("medsa is ready")

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Called once for each label a person saved, whichever way it came."""
        logger.info(f"label {privacy.short(label_id)} saved for {privacy.short(image_id)}")
        self.leases.end(image_id)
        self.counts.renew()
        self.retraining.schedule.look_now()

    def _score(self) -> None:
        """What is new since it was scored last; a scheduled job."""
        self.scoring_here.quietly(self.options.score_minutes)

    def model_info(self, model: str) -> dict[str, Any]:
        """Backbone, served adapter and the digests of a model; raises `NotFoundError`."""
        self.task(model)
        adapter, segmenter = self.runtime.models.segmenter()
        sam = segmenter.sam
        return {
            "adapter": adapter,
            "adapter_checksum": f"SHA256:{sam.adapter_digest}" if sam.adapter_digest else "",
            "checksum": f"SHA256:{sam.digest}",
            "backbone": sam.config.name,
            "licence": sam.config.licence,
        }

    def _warm_up(self) -> None:
        """In a thread that is waited for: native code must not run on while the process ends."""
        try:
            self.runtime.warm_up()
            labelled = self._datastore.get_labeled_images(FINAL)
            self.shelf.renew(*keys_of(self.runtime.segmenter, self.options.window), labelled)
        except Exception as error:  # noqa: BLE001 - the first click will tell the user
            logger.warning(f"warming up failed\n{privacy.frames(error)}")

    def _keep_house(self) -> None:
        self.counts.renew()
        while True:
            try:
                self.cleanup_sessions()
            except OSError as error:
                logger.warning(f"cleaning up uploads failed: {type(error).__name__}")
            time.sleep(_CLEAN_EVERY)


class Counts:
    """The datastore's counts as last known: who asks gets them at once, and a thread asks the store anew."""

    def __init__(self, ask: Callable[[], dict[str, Any]]) -> None:
        self._ask = ask
        self._known: dict[str, Any] = {"total": 0, "completed": 0}
        self._asked = float("-inf")
        self._busy = threading.Lock()

    def now(self) -> dict[str, Any]:
        """The counts, at most some seconds old unless the store is slow."""
        if time.monotonic() - self._asked > _COUNTS_LIVE and not self._busy.locked():
            threading.Thread(target=self.renew, name="counts", daemon=True).start()
        return self._known

    def renew(self) -> None:
        """Ask the store and wait for its answer; when it has none the old counts stay, with its sentence."""
        with self._busy:
            try:
                self._known = dict(self._ask())
            except MedsaError as error:
                self._known = {**self._known, "problem": str(error)}
            except Exception as error:  # noqa: BLE001 - a store may fail in any way; /info/ must not
                logger.warning(f"the datastore cannot be counted\n{privacy.frames(error)}")
                self._known = {**self._known, "problem": "the datastore cannot be asked"}
            finally:
                self._asked = time.monotonic()


def no_batch() -> BadInputError:
    """What is said when a batch is asked of a model that answers clicks."""
    return BadInputError(
        "this model needs a click or a box for each image; there is nothing to run in a batch: "
        f"{AUTOMATIC} needs none"
    )
