"""The next study: a strategy over what the datastore holds, what is known of it, and who has what."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy as MonaiLabelStrategy

from medsa.active.known import Shelf, keys_of
from medsa.active.strategies import Choice, Pool, Strategy, choose, possible, strategy
from medsa.errors import BadInputError, MedsaError
from medsa.server.leases import Free, Leases
from medsa.server.privacy import frames
from medsa.server.store import FINAL, Store
from medsa.server.tasks import Runtime

logger = logging.getLogger(__name__)

TRIES = 4
"""Choices that are made at once: the first ones may turn out to be gone or locked."""
LOCKED = "locked"
"""What is noted about an image that nobody is to label."""


class Offers:
    """What each annotator is offered. Two never get the same image while the first one's lease lasts."""

    def __init__(self, store: Store, runtime: Runtime, shelf: Shelf, leases: Leases) -> None:
        self.store, self.runtime, self.shelf, self.leases = store, runtime, shelf, leases
        self._choosing, self._fetching = threading.Lock(), threading.Lock()
        self._planned: dict[str, str] = {}
        self._rng = np.random.default_rng()

    def next(self, name: str, asked: Mapping[str, Any], who: str) -> dict[str, Any]:
        """The id of the next image and why it is that one; without "id" when there is none.

        `asked` may hold `skip`, ids that are not wanted; `modality`, `body_part` and `studies`, a list of ids
        of images or studies, that the image must be of; MONAI Label's `label_tag` and `labels`. Raises
        `NotFoundError`, `BadInputError`, `StoreError`.
        """
        chooser, skip = strategy(name), set(_words(asked, "skip"))
        with self._choosing:
            images = self._wanted(asked)
            refused, told = set[str](), dict[str, Any]()
            while not told:
                images = [image for image in images if image not in refused]
                free = self.leases.free([image for image in images if image not in skip], who)
                if not free.images:
                    why = _nothing_free(len(images), skip)
                    return {"remaining": len(images), "why": why} if images else {}
                told = self._chosen(chooser, free, who, refused)
        if self.runtime.options.ahead and not self._fetching.locked():
            offered = told["id"], self._planned.get(name)
            threading.Thread(target=self._fetch, args=offered, name="next study").start()
        return {**told, "remaining": len(images)}

    def _chosen(self, chooser: Strategy, free: Free, who: str, refused: set[str]) -> dict[str, Any]:
        """The choice among what is free, leased to `who`; empty when all that was tried is `refused`."""
        pool = self._pool(chooser, free.images)
        fit, warning = possible(chooser, pool)
        found = choose(fit, pool, TRIES, self._rng)
        planned = self._planned.pop(chooser.name, None)
        if planned is not None and fit.by_chance and planned in free.images:
            n = free.images.index(planned)  # chosen by chance before, and encoded ahead
            found = [Choice(n, math.nan, 1), *(one for one in found if one.n != n)]
        while found and not self._is_offerable(free.images[found[0].n]):
            refused.add(free.images[found.pop(0).n])
        if not found:
            return {}
        best = found[0]
        self.leases.offer(free.images[best.n], who)
        if len(found) > 1:
            self._planned[chooser.name] = free.images[found[1].n]
        warnings = "; ".join(filter(None, (warning, free.warning)))
        scored = math.isfinite(best.score)
        place = f" ({best.rank}. of {len(pool)}, score {best.score:.2f})" if scored else ""
        return {
            "id": free.images[best.n],
            "strategy": fit.name,
            "why": f"{fit.why}{place}{f'; {warnings}' if warnings else ''}",
            **({"score": round(best.score, 4), "rank": best.rank} if scored else {}),
            **({"warning": warnings} if warnings else {}),
        }

    def _pool(self, chooser: Strategy, images: Sequence[str]) -> Pool:
        labelled = self.store.get_labeled_images(FINAL)
        if not chooser.needs:
            return Pool.unknown(len(images), len(labelled))
        segmenter = self.runtime.segmenter
        novelty = self.shelf.newest(*keys_of(segmenter, self.runtime.options.window))
        known = novelty.known
        counts = {
            label: len(self.store.get_labeled_images(FINAL, [label]))
            for label in (known.by_label if chooser.name == "class_balanced" else ())
        }
        covered = [*labelled, *self.leases.held()]
        return known.pool(images, novelty.of(covered), len(labelled), counts)

    def _wanted(self, asked: Mapping[str, Any]) -> list[str]:
        """The images without a label that the request does not rule out."""
        images = self.store.get_unlabeled_images(asked.get("label_tag"), asked.get("labels"))
        wanted = {key: set(_words(asked, key)) for key in ("modality", "body_part", "studies")}
        if not any(wanted.values()):
            return images
        about = self.store.described()
        kinds = {
            "modality": lambda image: {about[image].modality},
            "body_part": lambda image: {about[image].body_part},
            "studies": lambda image: {image, about[image].study},
        }
        for key, values in wanted.items():
            if values and not any(values & kinds[key](image) for image in about):
                raise BadInputError(
                    f"no image of the datastore is of this {key}: {', '.join(sorted(values))[:200]}"
                )
        return [
            image
            for image in images
            if image in about
            and all(not values or values & kinds[key](image) for key, values in wanted.items())
        ]

    def _is_offerable(self, image: str) -> bool:
        """Whether the store has it still, and nobody locked it; asked anew."""
        return self.store.is_there(image) and not self.store.get_image_info(image).get(LOCKED)

    def _fetch(self, offered: str, planned: str | None) -> None:
        """Have the offered study, and then the one after it, encoded while nobody waits for anything."""
        with self._fetching:
            for image in filter(None, (offered, planned)):
                try:
                    self.runtime.ahead.study(
                        self.runtime.segmenter, self.store.volume(image), self.runtime.options.window
                    )
                except MedsaError:
                    continue  # whoever opens it will be told
                except Exception as error:  # noqa: BLE001 - nobody waits for it
                    logger.warning(f"a study was not fetched ahead\n{frames(error)}")


class Offered(MonaiLabelStrategy):
    """A strategy as MONAI Label knows it."""

    def __init__(self, offers: Offers, chooser: Strategy) -> None:
        super().__init__(chooser.why)
        self.offers, self.name = offers, chooser.name

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:  # noqa: ARG002
        """`request["client_id"]` says who asks, unless the server knows better (`who`)."""
        who = str(request.get("who") or request.get("client_id") or "")
        return self.offers.next(self.name, request, who)


def _words(asked: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings, or one, that a client sends; raises `BadInputError`."""
    values = asked.get(key) or []
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, Sequence) or not all(isinstance(one, str | None) for one in values):
        raise BadInputError(f"{key} must be a list of texts")
    return [one for one in values if one]


def _nothing_free(count: int, skip: set[str]) -> str:
    also = " or were skipped" if skip else ""
    return f"the {count} images that have no label yet are with other annotators{also}"
