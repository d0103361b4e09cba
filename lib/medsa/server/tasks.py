"""The interactive models that clients see, and the one runtime behind all models."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
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
from medsa.segmenter import Result, Segmenter, ServedModels, Sessions
from medsa.segmenter.served import CURRENT, NONE, choices
from medsa.server.added_labels import with_added
from medsa.server.click import Click, read_click
from medsa.server.privacy import short
from medsa.server.scratch import scratch_path
from medsa.training.versions import VersionStore

logger = logging.getLogger(__name__)

MOST_HISTORIES = 256
MOST_STEPS = 64

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
        self._loading = threading.Lock()
        self._turns = threading.Lock()
        self._running: dict[Key, threading.Event] = {}
        self._done: dict[Key, tuple[int, int]] = {}
        self._histories: OrderedDict[tuple[Key, int], list[Click]] = OrderedDict()

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

    def segment(self, volume: Volume, image: str, click: Click, user: str) -> Answer:
        """The mask that `click` asks for; a newer one of the same user on the same object ends a running one.

        `image` is the id under which the user knows `volume`. Raises `BadInputError`, `CancelledError`.
        """
        key = (user, image, click.label)
        if click.reset:
            self.sessions.close(*key)
            self._histories.pop((key, click.dimension), None)
        wanted = self._before_last((key, click.dimension)) if click.undo else click
        if wanted is None:
            return Answer(np.zeros(volume.shape, np.uint8, order="F"), self._params(click, None))
        session = self.sessions.open(*key)
        adapter, segmenter = self.models.segmenter(wanted.adapter)
        with self.turn(key) as newer:
            if wanted.k is None:
                result = segmenter.segment_volume(
                    volume,
                    wanted.prompt,
                    window=wanted.window,
                    session=session,
                    progress=partial(self._count, key, newer),
                    cancelled=newer.is_set,
                )
            else:
                result = segmenter.segment_slice(
                    volume, wanted.prompt, wanted.k, window=wanted.window, session=session
                )
        if not click.undo:
            self._note((key, click.dimension), click)
        timings = ", ".join(f"{name} {value:.0f} ms" for name, value in result.timings.items())
        logger.info(f"mask for {short(user)} on {short(image)}: {len(result.slices)} slices, {timings}")
        return Answer(result.mask, self._params(wanted, result, adapter))

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
            return {**told, "slices": [], "warnings": ["there is nothing left to undo"]}
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

    def _note(self, key: tuple[Key, int], click: Click) -> None:
        with self._turns:
            steps = self._histories.pop(key, [])
            self._histories[key] = [*steps, click][-MOST_STEPS:]
            while len(self._histories) > MOST_HISTORIES:
                self._histories.popitem(last=False)

    def _before_last(self, key: tuple[Key, int]) -> Click | None:
        """Take the last click back; the one before it, or None when there is none."""
        with self._turns:
            steps = self._histories.get(key, [])
            del steps[-1:]
            return steps[-1] if steps else None


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
        self, volume: Volume, image: str, params: Mapping[str, Any], user: str
    ) -> tuple[Answer, Click]:
        """The mask for a client's `params`, and how they were understood; raises `BadInputError`."""

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
        self, volume: Volume, image: str, params: Mapping[str, Any], user: str
    ) -> tuple[Answer, Click]:
        runtime = self.runtime
        click = read_click(params, volume.shape, self.dimension, runtime.labels, runtime.options.window)
        return runtime.segment(volume, image, click, user), click
