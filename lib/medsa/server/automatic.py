"""`medsa_auto`: objects found unasked, by an adapter that was taught to, or by the looks of labelled ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferType
from numpy.typing import NDArray

from medsa.adapters.state import newest_promptless, read_card
from medsa.config import data_dir
from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.segmenter.automatic import Found, find, find_taught
from medsa.segmenter.classes import PromptlessSam
from medsa.segmenter.prototypes import Prototypes
from medsa.server.click import Click, read_automatic
from medsa.server.examples import Examples
from medsa.server.privacy import short
from medsa.server.store import Store
from medsa.server.tasks import Answer, Begin, Runtime, Task
from medsa.training.versions import versions_folder

logger = logging.getLogger(__name__)

NAME = "medsa_auto"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Labelled:
    """`mask` (I, J, K) uint8, its values indices of the label set.

    `confidences` 0..1 by label that was looked for; `adapter` is the name of the version that was asked.
    """

    mask: NDArray[np.uint8]
    confidences: dict[str, float]
    adapter: str


class Automatic:
    """Finds labels in images of `store`, as `runtime`'s model and the site's own labels allow."""

    def __init__(self, runtime: Runtime, store: Store, studies: str) -> None:
        folder = data_dir() / "prototypes" / versions_folder(studies, runtime.options.backbone).name
        self.runtime, self.examples = runtime, Examples(store, folder)

    def segment(
        self,
        volume: Volume,
        image: str,
        names: Sequence[str] = (),
        *,
        window: str = "",
        adapter: str = "",
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Labelled:
        """The labels `names` (all that have been labelled somewhere, if none) in the image `image`.

        Raises `BadInputError` when there is no labelled study to go by, `CancelledError` soon after
        `cancelled()`, and what the model raises.
        """
        runtime, window = self.runtime, window or self.runtime.options.window
        served, segmenter = runtime.models.segmenter(adapter)
        found: dict[str, Found] = {}
        taught = self.taught()
        if taught is not None and (meant := self._meant(taught, names)):
            found = find_taught(
                segmenter,
                PromptlessSam(runtime.models.bank.load(taught), read_card(taught).labels),
                volume,
                meant,
                window=window,
                progress=progress or (lambda _done, _most: None),
                cancelled=cancelled,
            )
        known: dict[str, Prototypes] = {}
        for label in runtime.labels.labels:
            if label.name in found or (names and label.name not in names):
                continue
            one = self.examples.of(label, volume, segmenter, window, without=image, cancelled=cancelled)
            if one is not None:
                known[label.name] = one
        missing = [name for name in names if name not in known and name not in found]
        if missing or not (known or found):
            raise nothing_to_go_by(missing)
        if found and taught is not None:
            served = f"{taught.name}, {served}" if known else taught.name
        if known:
            found |= find(segmenter, volume, known, window=window, progress=progress, cancelled=cancelled)
        confidences = {name: round(one.confidence, 4) for name, one in found.items()}
        logger.info(f"{short(image)} was looked through for {len(found)} labels")
        return Labelled(self._joined(volume, found), confidences, served)

    def check(self, names: Sequence[str]) -> None:
        """Raise `BadInputError` when no labelled study can hold one of `names`, or any label at all."""
        taught = self.taught()
        sure = self._meant(taught, names) if taught is not None else set()
        held = [
            one.name for one in self.runtime.labels.labels if one.name in sure or self.examples.any_of(one)
        ]
        missing = [name for name in names if name not in held]
        if missing or not held:
            raise nothing_to_go_by(missing)

    def taught(self) -> Path | None:
        """The site's newest adapter version that segments by itself, if there is one."""
        folder = self.runtime.options.adapters
        return newest_promptless(Path(folder)) if folder else None

    def _meant(self, taught: Path, names: Sequence[str]) -> set[str]:
        """Labels that a version was taught and that are wanted here: of `names`, or of the label set."""
        wanted = set(names) or {label.name for label in self.runtime.labels.labels}
        return wanted & set(read_card(taught).labels)

    def _joined(self, volume: Volume, found: Mapping[str, Found]) -> NDArray[np.uint8]:
        """One mask of all labels; where two meet, that which the voxel is more like."""
        mask = np.zeros(volume.shape, np.uint8, order="F")
        best = np.zeros(volume.shape, np.float32, order="F")
        for name, one in found.items():
            here = (one.mask != 0) & ((mask == 0) | (one.likely > best))
            mask[here], best[here] = self.runtime.labels.by_name(name).index, one.likely[here]
        return mask


class AutomaticTask(Task):
    """A model of MONAI Label's type segmentation: an image in, all its labels out."""

    def __init__(self, automatic: Automatic) -> None:
        super().__init__(
            automatic.runtime,
            InferType.SEGMENTATION,
            3,
            "finds what the site's labelled studies show, without a click",
        )
        self.automatic = automatic

    def answer(
        self,
        volume: Volume,
        image: str,
        params: Mapping[str, Any],
        user: str,
        begin: Begin | None = None,  # noqa: ARG002 - of models that correct masks
    ) -> tuple[Answer, Click]:
        runtime = self.runtime
        click, names = read_automatic(params, runtime.labels, runtime.options.window)
        with runtime.turn((user, image, NAME)) as newer:
            found = self.automatic.segment(
                volume, image, names, window=click.window, adapter=click.adapter, cancelled=newer.is_set
            )
        told = {
            "label_names": {name: runtime.labels.by_name(name).index for name in found.confidences},
            "confidences": found.confidences,
            "options": {**runtime.options.shown(), "adapter": found.adapter},
            "warnings": [f"no {name} was found" for name, sure in found.confidences.items() if not sure],
        }
        return Answer(found.mask, told), click


def nothing_to_go_by(names: Sequence[str]) -> BadInputError:
    """What is said when no labelled study shows what to look for."""
    what = f"'{names[0]}'" if names else "anything"
    return BadInputError(
        f"there is no other labelled study of {what} yet: label one or two studies, save them, and ask again"
    )
