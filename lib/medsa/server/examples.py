"""What the labelled studies of a datastore have taught: prototypes of each label, kept on disk.

One safetensors file (0600) a study and label, named by what it was computed from: image, label, encoder and
window. A label that is saved anew, or an adapter that changes the encoder, makes another file.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError

from medsa.data.labels import Label
from medsa.data.volume import Volume
from medsa.errors import CancelledError, MedsaError, StoreUnavailableError
from medsa.files import write_atomically
from medsa.segmenter import Segmenter
from medsa.segmenter.automatic import learn
from medsa.segmenter.prototypes import Prototypes
from medsa.server.privacy import short
from medsa.server.store import Store

logger = logging.getLogger(__name__)

MOST = 8
"""Labelled studies that a label is known by, always the same ones as long as they are labelled."""
KEPT = 2000
"""Files in the folder; of more those that were not used for longest go."""
VERSION = 1

Cancelled = Callable[[], bool]


class Examples:
    """The human labels of `store` as prototypes, kept in `folder`, which is made when it is first needed."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._learning = threading.Lock()

    def of(
        self,
        label: Label,
        volume: Volume,
        segmenter: Segmenter,
        window: str,
        *,
        without: str = "",
        cancelled: Cancelled | None = None,
    ) -> Prototypes | None:
        """The prototypes of `label` for a `volume`, from labelled studies of its modality; None without any.

        The study `without` is left out: nothing is told what a person said about itself. Raises
        `StoreUnavailableError`, and `CancelledError` soon after `cancelled()`.
        """
        found: list[Prototypes] = []
        for image, state in self._labelled(label, volume):
            if image == without:
                continue
            try:
                with self._learning:
                    one = self._one(image, state, label, segmenter, window, cancelled)
            except (CancelledError, StoreUnavailableError):
                raise
            except MedsaError as error:
                logger.warning(f"the label of {short(image)} teaches nothing ({type(error).__name__})")
                continue
            if len(one):
                found.append(one)
            if len(found) == MOST:
                break
        return Prototypes.joined(found) if found else None

    def any_of(self, label: Label) -> bool:
        """Whether some human label may hold `label`, as far as can be told without reading it."""
        return any(True for _ in self._labelled(label))

    def _labelled(self, label: Label, volume: Volume | None = None) -> Iterator[tuple[str, str]]:
        """Images of the kind of `volume` whose label holds `label` or may, in an order of no meaning."""
        states = self.store.may_hold(label.name)
        for image in sorted(states, key=_digest):
            if volume is None or self._is_like(image, volume):
                yield image, states[image]

    def _is_like(self, image: str, volume: Volume) -> bool:
        modality = self.store.get_image_info(image).get("Modality", "")
        return not modality or not volume.modality or modality == volume.modality

    def _one(
        self,
        image: str,
        state: str,
        label: Label,
        segmenter: Segmenter,
        window: str,
        cancelled: Cancelled | None,
    ) -> Prototypes:
        """The prototypes of one study, from disk where they are; empty ones when it has no such label."""
        sam = segmenter.sam
        model = f"{sam.digest} {sam.image_size} {sam.encoder_digest} {window}"
        path = self.folder / f"{_digest(f'{VERSION} {image} {state} {label.name} {model}')}.safetensors"
        with suppress(OSError, SafetensorError):  # not there, or damaged: made again
            known = Prototypes.from_bytes(path.read_bytes())
            path.touch()
            return known
        newest = self.store.newest_label(image)
        mask, names = newest if newest is not None else (None, {})
        values = [value for value, name in names.items() if name.casefold() == label.name.casefold()]
        known = Prototypes.none()
        if mask is not None and values:
            held = np.isin(mask, values)
            known = learn(segmenter, self.store.volume(image), held, window=window, cancelled=cancelled)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, known.to_bytes())
        self._make_room()
        return known

    def _make_room(self) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        for path in files[: max(0, len(files) - KEPT)]:
            path.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
