"""The next study: never one that is labelled, locked, gone or with somebody else; and why it is that one."""

from collections.abc import Mapping

import numpy as np
import pytest
from benchmarks.next_study import drawn_store, write_scores
from tests.unit.adapters.conftest import small_sam

from medsa.active.book import Book, Page, Proposal
from medsa.active.known import Novelty, Shelf, keys_of
from medsa.active.strategies import STRATEGIES
from medsa.config import Options
from medsa.data.labels import load_labels
from medsa.data.phantom import draw_abdomen
from medsa.data.volume import Volume
from medsa.data.write import write_image
from medsa.errors import BadInputError, NotFoundError
from medsa.server.automatic import Automatic
from medsa.server.folder import FolderStore
from medsa.server.leases import CLICKED, Leases
from medsa.server.offers import Offers
from medsa.server.scoring import DICE, UNCERTAINTY, Scoring
from medsa.server.store import FINAL, About
from medsa.server.tasks import Runtime
from medsa.training.retrain import BusyError

NAMES, SHAPE = "abcdef", (48, 40, 4)
SIDE = np.asfortranarray(np.indices(SHAPE)[0] < 24)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def sam():
    return small_sam("vit")


@pytest.fixture
def runtime(monkeypatch, sam) -> Runtime:
    monkeypatch.setattr("medsa.server.tasks.load_sam", lambda *_, **__: sam)
    return Runtime(Options.from_conf({"device": "cpu", "adapter": "none", "window": "full", "ahead": "0"}))


@pytest.fixture
def store(tmp_path) -> FolderStore:
    """Six small drawn studies; "a" is labelled."""
    folder = tmp_path / "studies"
    folder.mkdir()
    store = FolderStore(str(folder), load_labels())
    for seed, name in enumerate(NAMES):
        values, _, spacing = draw_abdomen(SHAPE, seed)
        write_image(folder / f"{name}.nii.gz", Volume(values, np.diag([*spacing, 1.0]), "CT"))
        if name == "a":
            label(store, name, SIDE)
    return store


def label(store: FolderStore, name: str, mask: np.ndarray, tag: str = FINAL) -> None:
    index = store.labels.by_name("liver").index
    store.save_mask(name, mask * np.uint8(index), {index: "liver"}, tag, {})


@pytest.fixture
def shelf(tmp_path) -> Shelf:
    return Shelf(Book(tmp_path / "active" / "book.sqlite"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def offers(store, runtime, shelf, clock, tmp_path) -> Offers:
    return Offers(store, runtime, shelf, Leases(1800, tmp_path / "offers.json", clock))


def score(runtime: Runtime, shelf: Shelf, sure: dict[str, float]) -> None:
    """Pages as scoring would write them; the last letter of the alphabet looks farthest away."""
    encoder, model = keys_of(runtime.segmenter, runtime.options.window)
    for name, value in sure.items():
        look = np.zeros(8, np.float32)
        look[ord(name) - ord("a")] = 1
        found = {"liver": {"flip": value}}
        shelf.book.write({name: Page("", encoder, look, model, frozenset({"liver"}), found, {"liver": 0.9})})
    shelf.renew(encoder, model)


def test_two_annotators_never_get_the_same_study_and_nobody_a_labelled_one(offers, clock) -> None:
    given = []
    for clock.now, who in enumerate(("ann", "bob", "ann", "bob", "ann")):
        given.append(offers.next("random", {}, who)["id"])
    assert sorted(given) == list("bcdef")
    told = offers.next("random", {}, "eve")
    assert "id" not in told
    assert told == {"remaining": 5, "why": "the 5 images that have no label yet are with other annotators"}
    assert offers.next("random", {}, "ann")["id"] == given[0]  # theirs, the oldest
    clock.now = 1900
    assert offers.next("random", {}, "eve")["id"] in "bcdef"


def test_what_somebody_clicked_on_lately_comes_last_and_says_so(offers, clock) -> None:
    for name in "bcde":
        offers.leases.clicked(name, "bob")
    assert offers.next("first", {}, "ann")["id"] == "f"
    told = offers.next("first", {}, "ann")
    assert told["id"] == "b"
    assert "somebody clicked on it lately" in told["why"] == f"{STRATEGIES['first'].why}; {told['warning']}"
    clock.now = CLICKED + 1
    assert offers.next("first", {}, "ann")["id"] == "c"


def test_a_study_that_is_gone_locked_skipped_or_of_another_kind_is_not_offered(offers, store) -> None:
    store.update_image_info("b", {"locked": True})
    store.remove_image("c")
    assert offers.next("first", {"skip": ["d", None]}, "ann")["id"] == "e"
    store.described = lambda: {  # type: ignore[method-assign]
        name: About("CT" if name in "adf" else "MR", "LIVER", f"study of {name}") for name in NAMES
    }
    assert offers.next("first", {"modality": "CT", "studies": ["d", "study of f"]}, "ann")["id"] == "d"
    assert offers.next("first", {"body_part": ["LIVER"], "studies": "study of f"}, "ann")["id"] == "f"
    with pytest.raises(BadInputError, match="modality: US"):
        offers.next("first", {"modality": "US"}, "ann")
    with pytest.raises(BadInputError, match="list of texts"):
        offers.next("first", {"skip": [1]}, "ann")
    with pytest.raises(NotFoundError, match="hybrid"):
        offers.next("nonsense", {}, "ann")


def test_many_locked_studies_do_not_hide_the_one_that_is_not(offers, store) -> None:
    for name in "bcde":
        store.update_image_info(name, {"locked": True})
    assert offers.next("first", {}, "ann")["id"] == "f"
    store.update_image_info("f", {"locked": True})
    assert offers.next("random", {}, "ann") == {}


def test_a_study_that_vanished_since_the_list_was_made_is_not_offered(offers, store, monkeypatch) -> None:
    listed = store.get_unlabeled_images()
    monkeypatch.setattr(store, "get_unlabeled_images", lambda *_: listed)
    store.remove_image("b")
    assert offers.next("first", {}, "ann")["id"] == "c"


def test_of_five_thousand_studies_each_strategy_finds_one_without_reading_any(runtime, tmp_path) -> None:
    store = drawn_store(5000)
    store.volume.side_effect = AssertionError("no image is read")
    shelf = Shelf(Book(tmp_path / "book.sqlite"))
    write_scores(shelf.book, list(store.described()), runtime)
    offers = Offers(store, runtime, shelf, Leases(1800, tmp_path / "offers.json"))
    given = [offers.next(name, {"modality": "CT"}, who) for name in STRATEGIES for who in ("ann", "bob")]
    assert [told["strategy"] for told in given] == [name for name in STRATEGIES for _ in range(2)]
    assert len({told["id"] for told in given}) == len(given)
    assert not {told["id"] for told in given} & set(store.get_labeled_images())
    assert all("warning" not in told for told in given)
    assert store.is_there.call_count == len(given)


def test_the_least_sure_study_comes_first_and_the_answer_says_why(offers, runtime, shelf) -> None:
    score(runtime, shelf, dict(zip("bcdef", (0.1, 0.2, 0.9, 0.3, 0.4), strict=True)))
    told = offers.next("uncertainty", {}, "ann")
    assert (told["id"], told["rank"], told["score"], told["remaining"]) == ("d", 1, 1.0, 5)
    assert told["why"] == f"{STRATEGIES['uncertainty'].why} (1. of 5, score 1.00)"
    assert "warning" not in told
    assert offers.next("uncertainty", {}, "bob")["id"] == "f"


def test_what_is_leased_counts_as_covered_so_that_annotators_get_what_differs(offers, runtime, shelf) -> None:
    encoder, model = keys_of(runtime.segmenter, runtime.options.window)
    for name, place in zip(NAMES, ([0, 0], [9, 0], [9, 0.1], [0, 5], [0.1, 5], [1, 1]), strict=True):
        shelf.book.write({name: Page("", encoder, np.array([*place, 0], np.float32), model)})
    first = offers.next("diversity", {}, "ann")["id"]
    second = offers.next("diversity", {}, "bob")["id"]
    assert {first, second} not in ({"b", "c"}, {"d", "e"})


def test_without_scores_or_with_those_of_another_model_chance_decides_and_says_so(
    offers, runtime, shelf, monkeypatch
) -> None:
    told = offers.next("uncertainty", {}, "ann")
    assert told["strategy"] == "random"
    assert "5 of 5 images are not scored with the served model" in told["warning"]
    assert told["warning"] in told["why"]
    score(runtime, shelf, dict.fromkeys("bcdef", 0.5))
    assert offers.next("uncertainty", {}, "bob")["strategy"] == "uncertainty"
    monkeypatch.setattr("medsa.server.offers.keys_of", lambda *_: ("encoder", "promoted"))
    assert "not scored with the served model" in offers.next("hybrid", {}, "eve")["warning"]


@pytest.fixture
def scoring(store, runtime, shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSA_DATA", str(tmp_path / "data"))
    found = Scoring(store, Automatic(runtime, store, store.name()), shelf)
    yield found
    found.end()


def scored(scoring: Scoring, method: str = UNCERTAINTY, **params) -> dict:
    return scoring.run({"method": method, **params})


def test_scoring_does_what_is_new_and_after_a_promotion_all_again(
    scoring, offers, store, runtime, shelf, monkeypatch
) -> None:
    task = scored(scoring, versions=True)
    assert task["status"] == "DONE", task
    assert task["result"] == {"scored": 6, "failed": 0}
    pages = shelf.book.pages()
    assert sum(bool(page.components) for page in pages.values()) == 5  # of labelled ones the look is enough
    assert all(page.look.shape == (64,) for page in pages.values())
    assert offers.next("hybrid", {}, "ann")["strategy"] == "hybrid"
    assert scored(scoring)["progress"]["total"] == 0
    store.remove_image("f")
    write_image(store.folder / "b.nii.gz", Volume(np.zeros((20, 20, 2), np.int16), np.eye(4), "CT"))
    assert scored(scoring)["result"] == {"scored": 1, "failed": 0}
    assert len(shelf.book.pages()) == 5
    (store.folder / "g.nii.gz").write_bytes(b"no image")
    assert scored(scoring)["result"] == {"scored": 0, "failed": 1}
    encoder, _ = keys_of(runtime.segmenter, runtime.options.window)
    monkeypatch.setattr("medsa.server.scoring.keys_of", lambda *_: (encoder, "promoted"))
    assert scored(scoring)["result"] == {"scored": 4, "failed": 1}  # the labelled one looks as before


def test_what_is_told_as_done_decides_the_very_next_choice(scoring, offers, shelf, monkeypatch) -> None:
    renew, told = shelf.renew, []

    def look_first(*keys: str) -> Novelty:
        told.append(scoring.status()["status"])
        return renew(*keys)

    offers.next("uncertainty", {}, "ann")
    monkeypatch.setattr(shelf, "renew", look_first)
    assert scored(scoring)["status"] == "DONE"
    assert told == ["RUNNING"]


def test_scoring_goes_on_where_it_was_ended_and_keeps_to_its_minutes(scoring, shelf) -> None:
    write, kept = shelf.book.write, []

    def write_two(pages: Mapping[str, Page]) -> None:
        write(pages)
        kept.extend(pages)
        if len(kept) == 2:
            scoring._stop.set()

    scoring.book.write = write_two
    assert scored(scoring)["status"] == "STOPPED"
    assert len(shelf.book.pages()) == 2
    scoring.book.write = write
    task = scored(scoring, minutes=1e-9)
    assert task["details"] == ["the minutes are over, 4 images are left"]
    assert scored(scoring)["result"]["scored"] == 4


def test_proposals_are_compared_with_what_people_saved(scoring, store, shelf) -> None:
    label(store, "b", SIDE, "original")
    store.update_label_info("b", "original", {"adapter": "v0007"})
    corrected = SIDE.copy(order="F")
    corrected[16:] = False
    label(store, "b", corrected)
    assert scored(scoring, DICE)["status"] == "DONE"
    by_source = {one.source: one for one in shelf.book.proposals()}
    assert by_source["original"].dice == {"liver": pytest.approx(0.8, abs=1e-3)}
    assert by_source["original"].version == "v0007"
    assert 0 <= by_source["computed"].mean <= 1
    curve = scoring.curve()
    assert len(curve) == 2
    assert {"when", "version", "source", "dice", "last ten"} == set(curve[0])
    assert scored(scoring, DICE)["progress"]["total"] == 0
    shelf.book.propose("c", "s", Proposal("2999", "v", "original", {"liver": 1.0}))
    assert scoring.curve()[-1]["dice"] == 1


def test_one_scoring_runs_at_a_time_and_bad_wishes_are_refused(scoring) -> None:
    with pytest.raises(NotFoundError, match="uncertainty, dice"):
        scoring.start({"nonsense": {}})
    for wrong in ({"minutes": 0}, {"minutes": "5"}, {"versions": 1}):
        with pytest.raises(BadInputError):
            scoring.start({UNCERTAINTY: wrong})
    assert scoring.status() is None
    scoring.start({UNCERTAINTY: None, DICE: None})
    with pytest.raises(BusyError):
        scoring.start({DICE: None})
    assert scoring.stop()["request"]["method"] == UNCERTAINTY
    scoring.end()
    assert len(scoring.status(every=True)) == 2
