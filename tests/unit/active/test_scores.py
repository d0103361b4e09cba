"""Scores: what makes a model unsure raises them, size does not; and what has been found out is kept."""

import os
import signal
import stat
import time

import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import small_sam

from medsa.active.book import Book, Page, Proposal, hashed
from medsa.active.scores import edge_entropy, examine, joined, unlike, unstable
from medsa.data.phantom import draw_abdomen
from medsa.data.volume import Volume
from medsa.errors import CancelledError
from medsa.segmenter import Segmenter
from medsa.segmenter.automatic import learn

PARTS = {"predicted", "stability", "jitter", "flip", "boundary"}


def disc(radius: float, soft: float) -> torch.Tensor:
    """(64, 64) logits of a disc whose edge is as soft as told."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    return (radius - ((y - 32) ** 2 + (x - 32) ** 2).sqrt()) / soft


def test_a_soft_edge_is_less_sure_than_a_hard_one() -> None:
    hard, soft = disc(12, 0.2), disc(12, 3)
    assert edge_entropy(hard) < edge_entropy(soft) <= 1
    assert unstable(hard) < unstable(soft) < 1
    assert edge_entropy(torch.full((8, 8), -3.0)) == unstable(torch.full((8, 8), -3.0)) == 1


def test_entropy_on_the_edge_does_not_grow_with_the_object() -> None:
    assert edge_entropy(disc(6, 1)) == pytest.approx(edge_entropy(disc(24, 1)), abs=0.05)


def test_answers_without_an_object_agree_in_nothing() -> None:
    none, one = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    assert unlike(none, none) == unlike(none, one) == 1
    assert unlike(one, one) == 0


def test_a_large_organ_does_not_win_by_the_size_of_its_figures() -> None:
    studies = [{"liver": {"jitter": 10.0 * n}, "node": {"jitter": 0.001 * (3 - n)}} for n in range(4)]
    total, by_label = joined(studies)
    np.testing.assert_allclose(total, total[0])
    assert by_label["liver"].tolist() == [0.25, 0.5, 0.75, 1]
    total, _ = joined([{"liver": {"jitter": 0.1}}, {}, {"liver": {"jitter": 0.2}}])
    assert np.isnan(total[1])
    assert total[2] > total[0]
    assert np.isnan(joined([{}, {}])[0]).all()


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(small_sam("vit"))


def drawn(seed: int) -> tuple[Volume, np.ndarray]:
    values, _, spacing = draw_abdomen((48, 40, 6), seed)
    side = np.indices(values.shape)[0] < 24  # large enough for the few cells of a small model
    return Volume(values, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), "CT"), side


def test_a_study_is_looked_at_alone_and_asked_about_where_labels_show_what_to_look_for(segmenter) -> None:
    volume, _ = drawn(1)
    alone = examine(segmenter, volume, {})
    assert not alone.components
    assert alone.look.shape == (64,)
    assert np.isfinite(alone.look).all()
    known = learn(segmenter, *drawn(2))
    found = examine(segmenter, volume, {"liver": known}, other=segmenter)
    np.testing.assert_array_equal(found.look, alone.look)
    assert set(found.components["liver"]) == {*PARTS, "versions"}
    assert found.components["liver"]["versions"] == 0
    assert all(0 <= value <= 1 for value in found.components["liver"].values())
    with pytest.raises(CancelledError):
        examine(segmenter, volume, {}, cancelled=lambda: True)


def page(look: float, **more) -> Page:
    return Page("content", "encoder", np.full(4, look, np.float32), **more)


def test_the_book_keeps_pages_for_its_owner_alone_and_without_names(tmp_path) -> None:
    book = Book(tmp_path / "new" / "book.sqlite")
    assert book.pages() == {}
    assert book.stamp == (0, 0)
    first = page(1, model="m", asked=frozenset({"liver"}), components={"liver": {"flip": 0.5}})
    book.write({"DOE^JOHN": first, "other": page(2)})
    before = book.stamp
    book.write({"DOE^JOHN": page(3, model="m2", held={"liver": 0.25})})
    assert book.stamp != before
    assert stat.S_IMODE(book.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(book.path.parent.stat().st_mode) == 0o700
    assert b"DOE" not in book.path.read_bytes()
    again = Book(book.path).pages()
    assert set(again) == {hashed("DOE^JOHN"), hashed("other")}
    kept = again[hashed("DOE^JOHN")]
    assert (kept.model, kept.held, kept.components) == ("m2", {"liver": 0.25}, {})
    np.testing.assert_array_equal(kept.look, np.full(4, 3, np.float32))
    book.keep_only(["other"])
    assert set(book.pages()) == {hashed("other")}


def test_a_proposal_is_compared_once_with_each_label_and_outlives_its_study(tmp_path) -> None:
    book = Book(tmp_path / "book.sqlite")
    late, early = (Proposal(f"2026-01-0{day}", "v1", "original", {"liver": day / 10}) for day in (2, 1))
    book.propose("a", "state 1", late)
    book.propose("b", "state 1", early)
    book.propose("a", "state 1", early)
    assert book.compared() == {(hashed("a"), hashed("state 1")), (hashed("b"), hashed("state 1"))}
    book.keep_only([])
    assert book.proposals() == [early, late]
    assert late.mean == 0.2


def test_a_process_that_is_killed_while_it_writes_leaves_whole_pages(tmp_path) -> None:
    book = Book(tmp_path / "book.sqlite")
    child = os.fork()
    if not child:
        for n in range(10**6):
            book.write({f"{n}": page(n)})
        os._exit(0)
    try:
        ends = time.monotonic() + 120
        while not book.path.is_file() or len(book.pages()) < 3:
            assert time.monotonic() < ends
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    kept = book.pages()
    assert set(kept) == {hashed(f"{n}") for n in range(len(kept))}
    book.write({"next": page(0)})
    assert len(book.pages()) == len(kept) + 1
