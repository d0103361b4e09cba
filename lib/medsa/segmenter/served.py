"""Which model answers: the base or one of its adapter versions; a swap happens between two requests."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from medsa.adapters.inject import AdaptedSam
from medsa.adapters.state import MOST_LOADED, STARTER, AdapterBank, adapter_folders, starter_adapter
from medsa.errors import ConfigurationError
from medsa.sam import Sam
from medsa.segmenter.runtime import Segmenter

CURRENT, NONE = "current", "none"
"""What a request may name besides an adapter version: the served one (as without a name), the base."""


def choices(backbone: str, adapters: Path | None) -> list[str]:
    """What a request may name when `adapters` is the folder of versions: the served one, whichever, first."""
    versions = sorted(adapter_folders(adapters)) if adapters is not None else []
    return [CURRENT, *versions, *([STARTER] if starter_adapter(backbone) else ()), NONE]


class ServedModels:
    """Segmenters for a base and its adapter versions: they share embeddings, memory and locks.

    Whoever got a segmenter keeps it until the request is answered, whatever is served meanwhile. An adapter
    answers at once with torch alone; where the base is compiled it is compiled too, beside the requests, in a
    thread that the interpreter waits for, and answers faster from then on.
    """

    def __init__(self, base: Sam, cache_mb: int, adapters: Path | None = None) -> None:
        self.bank = AdapterBank(base, adapters)
        self._base = Segmenter(base, cache_mb)
        self._served: tuple[str, Segmenter] = (NONE, self._base)
        self._segmenters: OrderedDict[AdaptedSam, Segmenter] = OrderedDict()
        self._lock, self._compiling = threading.Lock(), threading.Lock()

    @property
    def name(self) -> str:
        """The adapter version that answers requests which name none; `NONE` for the base."""
        return self._served[0]

    def segmenter(self, name: str = "") -> tuple[str, Segmenter]:
        """The adapter called `name` and its segmenter; raises `NotFoundError`, `AdapterError`,
        `ConfigurationError` for one that takes no prompts.
        """
        if name in ("", CURRENT):
            return self._served
        return (name, self._base if name == NONE else self._of(self.bank.model(name), name))

    def serve(self, folder: Path | None) -> str:
        """Answer with the adapter version in `folder` from the next request on; with the base for None.

        Returns its name. Requests on their way end with what they began with. When it raises (as `segmenter`)
        nothing has changed.
        """
        if folder is None:
            self._served = NONE, self._base
        else:
            name = folder.resolve().name
            self._served = name, self._of(self.bank.load(folder), name)
        return self.name

    def _of(self, model: AdaptedSam, name: str) -> Segmenter:
        with self._lock:
            if model in self._segmenters:
                self._segmenters.move_to_end(model)
                return self._segmenters[model]
            if not model.method.prompts:
                raise ConfigurationError(
                    f"the adapter {name} ({model.method.name}) takes no clicks and no boxes: it segments all "
                    "its classes at once and cannot answer here"
                )
            segmenter = self._segmenters[model] = self._base.beside(model)
            while len(self._segmenters) > MOST_LOADED:
                self._segmenters.popitem(last=False)
        if self.bank.sam.accelerated and not model.accelerated:
            threading.Thread(target=self._compile, args=(segmenter,), name=f"compile {name}").start()
        return segmenter

    def _compile(self, segmenter: Segmenter) -> None:
        with self._compiling:
            segmenter.accelerate()
