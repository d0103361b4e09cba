"""Where a model that follows sees an object's end is measured on trails, and kept with its version."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.adapters.conftest import one_thread
from tests.unit.training.test_interaction import model

from medsa.adapters.state import load_adapter, read_card, save_adapter
from medsa.data.geometry import LPS_TO_RAS
from medsa.data.volume import Volume
from medsa.training.engine import grid_of
from medsa.training.items import items_of
from medsa.training.validation import _wrong, ending

__all__ = ["one_thread"]


def items(taught, last=4):
    """Trails on the slices of a box that ends after slice `last` of 6."""
    mask = np.zeros((48, 48, 7), np.uint8)
    mask[10:30, 12:34, : last + 1] = 1
    volume = Volume(np.asfortranarray(30 + 120 * mask, np.float32), LPS_TO_RAS, "MR")
    return items_of(volume, mask, {1: "box"}, grid_of(taught), "s", run=6)


class Scored:
    """A decoder that finds the object on every slice, with one predicted IoU where it is and one beyond."""

    def __init__(self, taught, held: float, beyond: float) -> None:
        self.model, self.scores = taught, (beyond, held)

    def __call__(self, embedding, points, labels, boxes, masks, multimask):
        count = len(embedding)
        score = self.scores[int(embedding[0, 0, 0, 0] > 0)]
        return torch.full((count, 1, 48, 48), 4.0), torch.full((count, 1), score)


def there(of):
    """Embeddings (N, 1, 1, 1) that tell whether the object is on the slice."""
    return torch.tensor([float(item.mask.any()) for item in of])[:, None, None, None]


@pytest.mark.parametrize(("held", "beyond"), [(0.9, 0.6), (0.6, 0.1), (0.98, 0.88)])
def test_the_limit_lies_between_what_slices_of_the_object_and_those_beyond_it_get(held, beyond) -> None:
    taught = model()
    found = ending(Scored(taught, held, beyond), there, 2 * items(taught))
    assert found is not None
    assert beyond < found <= held


def test_where_no_end_was_seen_there_is_no_limit() -> None:
    taught = model()
    assert ending(Scored(taught, 0.9, 0.1), there, 2 * items(taught, last=6)) is None


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=6), st.floats(0, 1))
def test_what_is_wrong_is_counted_as_the_runtime_would_stop(trail, limit) -> None:
    found, ended = 0, False
    scores, there = [score for score, _ in trail], [present for _, present in trail]
    for n, present in enumerate(there):
        ended = ended or max(scores[n : n + 2]) < limit
        found += present == ended
    assert _wrong(scores, there, limit) == found


def test_one_slice_that_hardly_shows_it_does_not_end_it() -> None:
    assert _wrong([0.9, 0.1, 0.8, 0.1, 0.1], [True, True, True, False, False], 0.4) == 0


def test_a_version_keeps_its_limit(tmp_path) -> None:
    taught = model()
    taught.ends_at = 0.65
    save_adapter(taught, tmp_path / "v1")
    assert read_card(tmp_path / "v1").ends_at == 0.65
    assert load_adapter(taught.base, tmp_path / "v1").ends_at == 0.65
