"""Notes that the server goes by: refused when they cannot be used, and no trouble where they lie already."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from medsa.data.labels import load_labels
from medsa.errors import BadInputError
from medsa.server.batch import Wanted, _keep, waiting
from medsa.server.folder import FolderStore
from medsa.server.routes.datastore import put_image_info, put_label_info, put_label_info_old
from medsa.server.store import FINAL

LABELS = load_labels()
LIVER = LABELS.by_name("liver").index
NO_LISTS = [None, "liver", ["liver"], [{"idx": 1}], [{"name": 1, "idx": 1}], [{"name": "liver", "idx": [1]}]]
NOTHING_FOUND = [None, "x", [], {"confidences": None}, {"confidences": {"liver": "sure"}}, {"adapter": "v1"}]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(folder / f"{name}.png")
    store = FolderStore(str(folder), LABELS)
    store.save_mask("a", drawn(), {LIVER: "liver"}, FINAL, {})
    return store


def drawn():
    mask = np.zeros((20, 20, 1), np.uint8)
    mask[4:9, 3:8] = LIVER
    return mask


@pytest.mark.parametrize("entries", NO_LISTS)
def test_a_list_of_labels_that_is_none_is_refused_by_the_doors(store, entries):
    app, info = SimpleNamespace(store=store), json.dumps({"label_info": entries})
    for door in (put_label_info, put_label_info_old):
        with pytest.raises(BadInputError, match="label_info"):
            door(app, None, "a", FINAL, info)
    assert store.get_labeled_images(labels=["liver"]) == ["a"]


@pytest.mark.parametrize("entries", NO_LISTS)
def test_a_list_of_labels_that_is_none_does_no_harm_where_it_lies(store, entries):
    store.update_label_info("a", FINAL, {"label_info": entries})
    assert store.status()["completed"] == 1
    assert store.get_unlabeled_images() == ["b"]
    assert store.may_hold("liver").keys() == {"a"}
    mask, names = store.newest_label("a")
    assert names == {LIVER: "liver"}
    assert np.array_equal(mask, drawn())


@pytest.mark.parametrize("entry", NOTHING_FOUND)
def test_what_was_found_must_be_confidences_by_label(store, entry):
    app = SimpleNamespace(store=store)
    with pytest.raises(BadInputError, match="medsa_auto"):
        put_image_info(app, None, "b", json.dumps({"medsa_auto": entry}))
    store.update_image_info("b", {"medsa_auto": entry})
    assert waiting(store, Wanted()) == ["b"]
    found = SimpleNamespace(mask=drawn(), confidences={"liver": 0.5}, adapter="v1")
    _keep(store, "b", store.volume("b"), found)
    assert waiting(store, Wanted()) == []


def test_what_the_server_can_use_is_noted(store):
    app = SimpleNamespace(store=store)
    put_label_info(app, None, "a", FINAL, json.dumps({"label_info": [{"name": "liver", "idx": LIVER}]}))
    put_image_info(app, None, "b", json.dumps({"locked": True, "medsa_auto": {"confidences": {"liver": 0}}}))
    assert store.get_image_info("b")["locked"] is True
    with pytest.raises(BadInputError, match="locked"):
        put_image_info(app, None, "b", json.dumps({"locked": "no"}))
