"""How long the next study takes: 5,000 drawn studies, half of them labelled, scores from a file.

    python benchmarks/next_study.py [STUDIES]

Asked as the server asks, two annotators in turn, without HTTP and without a DICOM store behind it. The scores
are read as the server reads them when it warms up, and again when there are new ones; what is told apart is
the first answer after each.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np

from medsa.active.book import Book, Page
from medsa.active.known import Shelf, keys_of
from medsa.active.strategies import STRATEGIES
from medsa.config import Options
from medsa.server.leases import Leases
from medsa.server.offers import Offers
from medsa.server.store import About, Store
from medsa.server.tasks import Runtime

LABELS = ("liver", "spleen", "left kidney", "right kidney")
ROUNDS = 20
WIDTH = 512


def drawn_store(count: int) -> Store:
    """A datastore of drawn metadata alone: every second study has a label."""
    images = [f"1.2.826.0.1.3680043.8.498.{number}" for number in range(count)]
    labelled = {image: LABELS[: 1 + n % len(LABELS)] for n, image in enumerate(images) if n % 2}
    about = {
        image: About("CT" if n % 3 else "MR", "ABDOMEN", f"study {n}", "60") for n, image in enumerate(images)
    }
    store = create_autospec(Store, instance=True)
    store.get_labeled_images.side_effect = lambda _tag=None, names=None: [
        image for image, held in labelled.items() if set(names or ()) <= set(held)
    ]
    store.get_unlabeled_images.side_effect = lambda *_: [image for image in images if image not in labelled]
    store.described.side_effect = lambda: about
    store.is_there.side_effect = about.__contains__
    store.get_image_info.side_effect = lambda _: {}
    return store


def write_scores(book: Book, images: list[str], runtime: Runtime) -> None:
    """Pages as scoring writes them, of made-up figures."""
    rng = np.random.default_rng(0)
    encoder, model = keys_of(runtime.segmenter, runtime.options.window)
    pages = {}
    for image in images:
        found = {
            label: {part: float(rng.random()) for part in ("flip", "jitter", "boundary")} for label in LABELS
        }
        look = rng.normal(size=WIDTH).astype(np.float32)
        held = dict.fromkeys(LABELS, float(rng.random()))
        pages[image] = Page("60", encoder, look, model, frozenset(LABELS), found, held)
    book.write(pages)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    runtime, store = Runtime(Options.from_conf({"ahead": "0", "device": "cpu"})), drawn_store(count)
    with tempfile.TemporaryDirectory() as folder:
        book = Book(Path(folder) / "book.sqlite")
        started = time.perf_counter()
        images = list(store.described())
        write_scores(book, images, runtime)
        print(f"{count} pages written in {time.perf_counter() - started:.1f} s", flush=True)
        keys = keys_of(runtime.segmenter, runtime.options.window)
        for name in STRATEGIES:
            shelf = Shelf(book)
            offers = Offers(store, runtime, shelf, Leases(1800, Path(folder) / f"{name}.json"))
            read = milliseconds(partial(shelf.renew, *keys, store.get_labeled_images()))
            times = [asked(offers, name, number) for number in range(1 + ROUNDS)]
            write_scores(book, images[:100], runtime)
            reread = milliseconds(partial(shelf.renew, *keys))
            after = asked(offers, name, 0)
            print(
                f"{name:18} first {times[0]:4.0f} ms, then median {statistics.median(times[1:]):3.0f} ms, "
                f"worst {max(times[1:]):3.0f} ms; first after new scores {after:3.0f} ms; "
                f"reading them {read:4.0f} and {reread:4.0f} ms",
                flush=True,
            )


def asked(offers: Offers, name: str, number: int) -> float:
    """Milliseconds that a question took; every second one has a filter."""

    def ask() -> None:
        told = offers.next(name, {"modality": "CT"} if number % 2 else {}, f"annotator {number % 2}")
        assert told["strategy"] == name, told

    return milliseconds(ask)


def milliseconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
