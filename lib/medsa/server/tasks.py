"""The interactive models that clients see, and the one runtime behind all models."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from numpy.typing import NDArray

from medsa.adapters.method import read_method
from medsa.adapters.state import STARTER, adapter_folders, newest_adapter, starter_adapter
from medsa.config import Options
from medsa.data.labels import load_labels
from medsa.data.read import read_volume
from medsa.data.volume import Volume
from medsa.data.window import WINDOW_NAMES, check_window
from medsa.data.write import write_mask
from medsa.errors import BadInputError, ConfigurationError
from medsa.prompts import Prompt
from medsa.sam import load_sam
from medsa.segmenter import Result, Segmenter, ServedModels, Session, Sessions, Start, finished
from medsa.segmenter.ahead import Ahead
from medsa.segmenter.served import CURRENT, NONE, choices
from medsa.server.added_labels import with_added
from medsa.server.click import Click, read_click
from medsa.server.history import Histories
from medsa.server.privacy import short
from medsa.server.scratch import scratch_path
from medsa.training.versions import VersionStore

logger = logging.getLogger(__name__)

Begin = Callable[[str, str], NDArray[np.bool_]]
"""(start, label) as a click names them, to the mask (I, J, K) that is meant."""
Key = tuple[str, str, str]
"""(user, image, label): whose clicks belong together."""


@dataclass(frozen=True)
class Answer:
    """`mask` (I, J, K) uint8 0/1 on the image's grid, and what clients are told about it."""

    mask: NDArray[np.uint8]
    params: dict[str, Any]


class Runtime:
    """The model of this process, and what its users have clicked; made once, loaded when first needed.

    Raises `ConfigurationError` when the label set or the window of the options is none.
    """

    def __init__(self, options: Options) -> None:
        try:
            check_window(options.window)
        except BadInputError as error:
            raise ConfigurationError(f"--conf window: {error}") from None
        if options.adapter not in ("", NONE, STARTER) and not options.adapters:
            raise ConfigurationError("--conf adapter names a version: say where it is with --conf adapters")
        if options.method and not read_method(options.method).prompts:
            raise ConfigurationError(
                f"--conf method: {options.method} takes no clicks and no boxes; choose one that does "
                "(`medsa methods` lists them)"
            )
        self.options = options
        self.labels = load_labels(options.labels)
        if options.adapters:
            self.labels = with_added(self.labels, Path(options.adapters))
        self.sessions = Sessions()
        self.ahead = Ahead(options.ahead)
        self._loading = threading.Lock()
        self._turns = threading.Lock()
        self._running: dict[Key, threading.Event] = {}
        self._done: dict[Key, tuple[int, int]] = {}
        self._histories: Histories[Click] = Histories()

    @property
    def models(self) -> ServedModels:
        """Backbone and adapters, loaded on first use.

        Raises `WeightsError` when weights are missing, `AdapterError` or `ConfigurationError` when the
        adapter of the options cannot be served.
        """
        with self._loading:
            return self._models

    @cached_property
    def _models(self) -> ServedModels:
        options = self.options
        sam = load_sam(options.backbone, device=options.device)
        models = ServedModels(sam, options.cache_mb, Path(options.adapters) if options.adapters else None)
        models.serve(self._first_adapter())
        return models

    @property
    def served(self) -> str:
        """The name of the adapter that is served, as far as known; never waits."""
        return self._models.name if "_models" in self.__dict__ else self.options.adapter or CURRENT

    @property
    def segmenter(self) -> Segmenter:
        """What answers requests that name no adapter; raises as `models`."""
        return self.models.segmenter()[1]

    def serve(self, folder: Path | None) -> str:
        """Answer with the adapter version in `folder` from the next request on; returns its name.

        None means what the options name. Requests on their way end with what they began with. Raises
        `NotFoundError`, `AdapterError`, `ConfigurationError`: then nothing has changed.
        """
        name = self.models.serve(folder or self._chosen_adapter())
        logger.info(f"serving the adapter {name}")
        return name

    def adapters(self) -> list[str]:
        """What a request may name as its adapter; never waits."""
        options = self.options
        return choices(options.backbone, Path(options.adapters) if options.adapters else None)

    def _chosen_adapter(self) -> Path | None:
        """The version that `--conf adapter` names, or the starter adapter; None for the backbone alone."""
        options = self.options
        if options.adapter == NONE:
            return None
        if options.adapter in ("", STARTER):
            return starter_adapter(options.backbone)
        folders = adapter_folders(Path(options.adapters))
        if options.adapter not in folders:
            raise ConfigurationError(
                f"--conf adapter: '{options.adapter}' is not in {options.adapters}, which holds: "
                f"{', '.join(sorted(folders)) or 'no adapter version'}"
            )
        return folders[options.adapter]

    def _first_adapter(self) -> Path | None:
        """What to serve at first: what the options name, what a store promoted, the newest, the starter."""
        options = self.options
        if options.adapter or not options.adapters:
            return self._chosen_adapter()
        folder, store = Path(options.adapters), VersionStore(Path(options.adapters))
        if (version := store.current()) is not None:
            return version.folder
        name = newest_adapter(folder, options.method, without=store.names())
        return self._chosen_adapter() if name is None else adapter_folders(folder)[name]

    def warm_up(self) -> None:
        """Encode and decode a small empty image, so that whoever clicks first need not wait for compilers."""
        volume = Volume(np.zeros((64, 64, 1), np.float32, order="F"), np.eye(4))
        self.segmenter.segment_slice(
            volume, Prompt(foreground=np.array([[32.0, 32.0, 0.0]])), 0, window="0,1"
        )

    def segment(
        self, volume: Volume, image: str, click: Click, user: str, begin: Begin | None = None
    ) -> Answer:
        """The mask that `click` asks for; a newer one of the same user on the same object ends a running one.

        `image` is the id under which the user knows `volume`; `begin` finds the mask that a click would
        correct. Raises `BadInputError`, `CancelledError`, and what `begin` raises.
        """
        key = (user, image, click.label)
        if click.reset:
            self.sessions.close(*key)
            self._histories.forget((key, click.dimension))
        wanted = self._wanted(click, (key, click.dimension))
        if wanted is None:
            return Answer(np.zeros(volume.shape, np.uint8, order="F"), self._params(click, None))
        session = self.sessions.open(*key)
        start = self._start(session, wanted, begin)
        adapter, segmenter = self.models.segmenter(wanted.adapter)
        segmenter = segmenter.about(wanted.label)
        with self.turn(key) as newer:
            if wanted.k is None:
                result = segmenter.segment_volume(
                    volume,
                    wanted.prompt,
                    window=wanted.window,
                    session=session,
                    start=start,
                    zoom=wanted.zoom,
                    progress=partial(self._count, key, newer),
                    cancelled=newer.is_set,
                )
            else:
                result = segmenter.segment_slice(
                    volume,
                    wanted.prompt,
                    wanted.k,
                    window=wanted.window,
                    session=session,
                    start=start,
                    zoom=wanted.zoom,
                )
                if self.options.ahead:
                    self.ahead.around(segmenter, volume, wanted.window, wanted.k)
        if wanted is click:
            self._histories.add((key, click.dimension), click)
        timings = ", ".join(f"{name} {value:.0f} ms" for name, value in result.timings.items())
        logger.info(f"mask for {short(user)} on {short(image)}: {len(result.slices)} slices, {timings}")
        mask = finished(result.mask, wanted.prompt, volume.spacing, wanted.finish)
        return Answer(mask, self._params(wanted, result, adapter))

    def _wanted(self, click: Click, whose: tuple[Key, int]) -> Click | None:
        """The click to answer: this one, or the one that an undo or a redo leads to; None for none."""
        if click.undo:
            return self._histories.back(whose)
        return self._histories.again(whose) if click.redo else click

    def _start(self, session: Session, click: Click, begin: Begin | None) -> Start | None:
        """The mask that `click` corrects, as this session first found it; None to begin anew."""
        if not click.start:
            return None
        if begin is None:
            raise BadInputError("there is no saved mask to begin with here: leave start away")
        return session.begun(click.start, lambda: Start(begin(click.start, click.label)))

    def progress(self, user: str, image: str, label: str) -> tuple[int, int] | None:
        """Slices done and the most there may be, of the volume that this user waits for; None for none."""
        return self._done.get((user, image, label))

    def _count(self, key: Key, newer: threading.Event, done: int, most: int) -> None:
        with self._turns:
            if self._running.get(key) is newer:
                self._done[key] = done, most

    def _params(self, click: Click, result: Result | None, adapter: str = "") -> dict[str, Any]:
        name = click.label or self.labels.labels[0].name
        told: dict[str, Any] = {"label_names": {name: 1}, "label": name, "options": self.options.shown()}
        if result is None:
            word = "redo" if click.redo else "undo"
            return {**told, "slices": [], "warnings": [f"there is nothing left to {word}"]}
        return {
            **told,
            "options": {**told["options"], **result.options, "adapter": adapter},
            "slices": list(result.slices),
            "score": round(float(result.score), 4),
            "cached": result.cached,
            "warnings": list(result.warnings),
            "latencies": {key: round(value / 1e3, 4) for key, value in result.timings.items()},
        }

    @contextmanager
    def turn(self, key: Key) -> Iterator[threading.Event]:
        """Within it a request is at work; the event is set when its user makes a newer one on its object."""
        newer = threading.Event()
        with self._turns:
            older = self._running.get(key)
            self._running[key] = newer
        if older is not None:
            older.set()
        try:
            yield newer
        finally:
            with self._turns:
                if self._running.get(key) is newer:
                    del self._running[key]
                    self._done.pop(key, None)


class Task(InferTask):
    """A model as MONAI Label's clients know it."""

    def __init__(self, runtime: Runtime, kind: InferType, dimension: int, description: str) -> None:
        windows = dict.fromkeys((runtime.options.window, *WINDOW_NAMES))
        super().__init__(
            type=kind,
            labels=list(runtime.labels.names.values()),
            dimension=dimension,
            description=f"{runtime.options.backbone}: {description}",
            config={"window": list(windows)},
        )
        self.runtime = runtime

    def info(self) -> dict[str, Any]:
        """What clients are told; labels that have been added since the start are among them."""
        labels = {name: index for index, name in self.runtime.labels.names.items()}
        return {**super().info(), "labels": labels}

    def config(self) -> dict[str, Any]:
        """What a client may choose; the first of each list is taken unless it does."""
        return {**super().config(), "adapter": self.runtime.adapters()}

    def is_valid(self) -> bool:
        return True

    @abstractmethod
    def answer(
        self,
        volume: Volume,
        image: str,
        params: Mapping[str, Any],
        user: str,
        begin: Begin | None = None,
    ) -> tuple[Answer, Click]:
        """The mask for a client's `params`, and how they were understood; raises `BadInputError`.

        `begin` finds a mask that the client wants to correct.
        """

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """MONAI Label's own way in: `request["image"]` is a path, the answer the path of a new file."""
        params = {
            name: value for name, value in request.items() if name not in ("image", "model", "save_label")
        }
        path = Path(str(request["image"]))
        volume = read_volume(path)
        answer, click = self.answer(volume, path.name, params, str(params.get("client_id") or ""))
        target = scratch_path(f"mask{click.extension}")
        write_mask(target, answer.mask, volume)
        return str(target), answer.params


class ClickTask(Task):
    """A model of MONAI Label's type deepgrow: points and a box in, one mask out."""

    def __init__(self, runtime: Runtime, dimension: int) -> None:
        where = "slice" if dimension == 2 else "volume"
        super().__init__(
            runtime, InferType.DEEPGROW, dimension, f"a click or a box gives the object in its {where}"
        )

    def answer(
        self,
        volume: Volume,
        image: str,
        params: Mapping[str, Any],
        user: str,
        begin: Begin | None = None,
    ) -> tuple[Answer, Click]:
        runtime = self.runtime
        click = read_click(params, volume.shape, self.dimension, runtime.labels, runtime.options.window)
        return runtime.segment(volume, image, click, user, begin), click
