"""A saved mask, or one sent along, is corrected by clicks; what is wished for in the end is done to it."""

import json
from io import BytesIO

import nrrd
import numpy as np
import pytest

from medsa.data.volume import Volume
from medsa.server.encode import nrrd_bytes

AFFINE = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 30], [0, 0, 3.0, -20], [0, 0, 0, 1.0]])
INSIDE = [30, 24, 6]


def read(answer) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    stream = BytesIO(answer.content)
    return nrrd.read_data(nrrd.read_header(stream), stream) != 0


@pytest.fixture
def rough(drawn) -> np.ndarray:
    """The drawn object without its right half, ragged as no model would answer it; and a crumb."""
    mask = drawn.truth & (np.random.default_rng(2).random(drawn.truth.shape) > 0.05)
    mask[34:] = False
    mask[2:4, 2:4, 1] = True
    return mask


@pytest.fixture
def content(rough) -> bytes:
    return nrrd_bytes(rough.astype(np.uint8), Volume(np.asfortranarray(rough.astype(np.uint8)), AFFINE))


def ask(client, image, model, content=None, **params):
    files = {"params": (None, json.dumps({"result_extension": ".nrrd", "label": "liver", **params}))}
    if content is not None:
        files["label"] = ("label.nrrd", content)
    return client.post(f"/infer/{model}", params={"image": image, "output": "image"}, files=files)


@pytest.mark.parametrize("how", ["stored", "sent"])
def test_clicks_correct_a_mask_and_leave_the_rest_of_it_to_the_voxel(
    client, drawn, rough, content, how
) -> None:
    assert client.save(drawn.image, content).status_code == 200
    begun = {"start": "stored"} if how == "stored" else {"content": content}
    whole = read(ask(client, drawn.image, "medsa_3d", **begun, background=[[3, 3, 1]], reset_state=True))
    np.testing.assert_array_equal(whole[10:], rough[10:])
    assert not whole[3, 3, 1]
    added = read(
        ask(client, drawn.image, "medsa_3d", **begun, background=[[3, 3, 1]], foreground=[[40, 24, 6]])
    )
    assert added[38:43, 21:27, 6].all()
    assert (added[:30] == whole[:30]).mean() > 0.99
    flat = read(ask(client, drawn.image, "medsa_2d", **begun, foreground=[INSIDE], slice=6, label="liver"))
    assert flat[30, 24, 6]
    assert not np.delete(flat, 6, axis=2).any()


def test_what_is_wished_for_is_done_in_the_end(client, drawn, rough, content) -> None:
    asked = {"content": content, "foreground": [INSIDE]}
    kept = read(ask(client, drawn.image, "medsa_3d", **asked, largest_component=True, fill_holes=True))
    assert not kept[2:4].any()
    assert kept[25:33, 20:28, 6].all()
    assert not rough[25:33, 20:28, 6].all()
    small = read(ask(client, drawn.image, "medsa_3d", **asked, smallest=4 * 1.5 * 1.5 * 3.0 + 0.1))
    assert not small[2:4].any()


def test_a_click_that_was_taken_back_can_be_made_again(client, drawn) -> None:
    def ask_one(**params) -> np.ndarray:
        return read(ask(client, drawn.image, "medsa_2d", client_id="redoer", **params))

    first = ask_one(foreground=[INSIDE])
    second = ask_one(foreground=[INSIDE], background=[[26, 24, 6]])
    assert (first != second).any()
    for step, mask in (("undo", first), ("redo", second), ("redo", second), ("undo", first)):
        np.testing.assert_array_equal(ask_one(**{step: True}), mask)
    third = ask_one(foreground=[INSIDE, [20, 24, 6]])
    np.testing.assert_array_equal(ask_one(redo=True), third)


def test_what_cannot_be_begun_with_is_a_sentence(client, drawn, content) -> None:
    box = [[5, 5, 6], [20, 20, 6]]
    for params, says in (
        ({"start": "none-such", "foreground": [INSIDE]}, ""),
        ({"start": "../../labels/final/drawn", "foreground": [INSIDE]}, "not a path"),
        ({"content": content, "box": box}, "corrected with clicks"),
        ({"content": content[:200], "foreground": [INSIDE]}, "label"),
        ({"content": content, "foreground": [INSIDE], "smallest": "tiny"}, "smallest"),
    ):
        answer = ask(client, drawn.image, "medsa_3d", **params)
        assert 400 <= answer.status_code < 500, answer.text
        assert says in answer.json()["detail"]
    across = ask(client, drawn.image, "medsa_2d", box=[[5, 5, 2], [5, 20, 6]])
    assert "crosses the slices" in across.json()["detail"]
