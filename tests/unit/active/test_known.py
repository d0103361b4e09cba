"""What is known, as arrays: stale pages count for nothing, and what is added later changes nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medsa.active.book import Book, Page, hashed
from medsa.active.known import Known, Novelty, Shelf

NAMES = [f"study {n}" for n in range(8)]


def pages() -> dict[str, Page]:
    """Eight studies: the last was seen by another encoder, the two before it scored by another model."""
    rng = np.random.default_rng(0)
    return {
        hashed(name): Page(
            "", "other" if n == 7 else "encoder", rng.normal(size=6).astype(np.float32),
            "model" if n < 5 else "old", frozenset({"liver"}), {"liver": {"flip": n / 10}}, {"liver": 0.5},
        )
        for n, name in enumerate(NAMES)
    }  # fmt: skip


def test_pages_of_another_encoder_or_model_are_not_known() -> None:
    known = Known.of(pages(), "encoder", "model")
    pool = known.pool([*NAMES, "never seen"], Novelty(known).of([]), 0)
    assert np.isfinite(pool.typical).tolist() == [True] * 7 + [False] * 2
    assert np.isfinite(pool.unsure).tolist() == [True] * 5 + [False] * 4
    assert np.isfinite(pool.by_label["liver"]).sum() == 5
    assert np.isinf(pool.novel[:7]).all()
    assert np.isnan(pool.novel[7:]).all()


@given(st.lists(st.sets(st.sampled_from([*NAMES, "unknown"])), max_size=5))
def test_novelty_is_the_same_whatever_was_covered_before(covers: list[set[str]]) -> None:
    known = Known.of(pages(), "encoder", "model")
    kept = Novelty(known)
    for covered in covers:
        again = Novelty(known).of(sorted(covered))
        np.testing.assert_allclose(kept.of(sorted(covered)), again, rtol=0, atol=1e-6)
    for name in covers[-1] & set(NAMES[:7]) if covers else ():
        assert kept.of(sorted(covers[-1]))[NAMES.index(name)] < 1e-6


def test_an_empty_book_knows_nothing_and_another_model_is_read_beside_the_question(tmp_path) -> None:
    shelf = Shelf(Book(tmp_path / "book.sqlite"))
    nothing = shelf.newest("encoder", "model")
    assert np.isnan(nothing.known.pool(NAMES, nothing.of(NAMES), 0).unsure).all()
    shelf.book.write(dict(zip(NAMES, pages().values(), strict=True)))
    shelf.renew("encoder", "model")
    assert len(shelf.newest("encoder", "model").known.rows) == 8
    promoted = shelf.newest("encoder", "promoted")
    assert promoted.known.rows == {}
    shelf.renew("encoder", "promoted")
    known = shelf.newest("encoder", "promoted").known
    assert np.isfinite(known.typical).sum() == 7
    assert np.isnan(known.unsure).all()


def test_distances_are_ready_before_the_question_and_after_new_scores(tmp_path, monkeypatch) -> None:
    shelf, found = Shelf(Book(tmp_path / "book.sqlite")), dict(zip(NAMES, pages().values(), strict=True))
    shelf.book.write(found)
    before = shelf.renew("encoder", "model", NAMES[:3])
    expected = before.of(NAMES[:3])[before.known.at(NAMES)]
    assert np.isfinite(expected[:7]).all()
    shelf.book.write({NAMES[3]: found[NAMES[3]]})
    after = shelf.renew("encoder", "model")
    assert after is not before
    monkeypatch.setattr("medsa.active.known.nearest", None)
    np.testing.assert_allclose(after.of(NAMES[:3])[after.known.at(NAMES)], expected, rtol=0, atol=1e-6)
