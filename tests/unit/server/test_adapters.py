"""Adapters on the server: which is served at first, which a request may choose, what is told about them."""

import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.config import Options
from medsa.data.volume import Volume
from medsa.errors import AdapterError, ConfigurationError, NotFoundError
from medsa.sam import load_sam
from medsa.server.tasks import ClickTask, Runtime
from medsa.training.versions import VersionStore


@pytest.fixture(scope="module")
def volume():
    voxels = np.zeros((64, 64, 1), np.float32, order="F")
    voxels[20:40, 20:40] = 1
    return Volume(voxels, np.eye(4))


@pytest.fixture(scope="module")
def sam():
    return load_sam("lite_medsam", accelerate=False)


@pytest.fixture
def adapters(sam, tmp_path):
    """Two versions that answer unlike each other and the base; "b" is the newer one."""
    for day, (name, shift) in enumerate((("a", 1.0), ("b", -1.0)), start=1):
        model = adapt(sam, "decoder_only")
        with torch.no_grad():
            model.adapters.own["mask_decoder"].iou_prediction_head.layers[-1].bias.add_(shift)
        save_adapter(model, tmp_path / name, created=datetime(2026, 1, day, tzinfo=UTC))
    return tmp_path


def runtime(monkeypatch, **conf):
    """A runtime without compiled models: they cost time and are tested elsewhere."""
    monkeypatch.setattr(
        "medsa.server.tasks.load_sam", lambda name, device: load_sam(name, device=device, accelerate=False)
    )
    return Runtime(Options.from_conf({"device": "cpu", **conf}))


def test_the_newest_is_served_and_each_request_may_choose(monkeypatch, adapters, volume):
    task = ClickTask(runtime(monkeypatch, adapters=str(adapters)), 2)
    assert task.info()["config"]["adapter"] == ["current", "a", "b", "starter", "none"]
    told = {}
    for adapter in ("", "current", "a", "b", "starter", "none"):
        answer, _ = task.answer(volume, "image", {"roi": [18, 42, 18, 42, 0, 0], "adapter": adapter}, "user")
        told[adapter] = answer.params["score"]
        assert answer.params["options"]["adapter"] == {"": "b", "current": "b"}.get(adapter, adapter)
        assert answer.params["options"]["adapters"] == adapters.name
    assert told[""] == told["current"] == told["b"]
    assert told["a"] > told["none"] > told["b"] != told["starter"]
    listed, _ = task.answer(volume, "i", {"roi": [18, 42, 18, 42, 0, 0], "adapter": ["a", "b"]}, "slicer")
    assert listed.params["options"]["adapter"] == "a"
    with pytest.raises(NotFoundError, match=r"unknown adapter '\.\./a'; there are: a, b, starter"):
        task.answer(volume, "image", {"roi": [18, 42, 18, 42, 0, 0], "adapter": "../a"}, "user")


def test_what_a_click_is_about_is_told_to_a_model_that_knows_it(monkeypatch, sam, volume, tmp_path):
    model = adapt(sam, "decoder_prompt")
    model.trained_prompts = ("point", "box", "mask")
    model.learn_names(["liver"]).data.fill_(0.1)
    save_adapter(model, tmp_path / "named")
    task = ClickTask(runtime(monkeypatch, adapters=str(tmp_path)), 2)

    def score(label):
        asked = {"foreground": [[30, 30, 0]], "label": label}
        return task.answer(volume, "image", asked, "user")[0].params["score"]

    assert score("liver") != score("spleen") == score("")


def test_the_served_adapter_is_chosen_by_name_or_by_method(monkeypatch, adapters):
    for conf, name in (
        ({}, "b"),
        ({"adapter": "a"}, "a"),
        ({"adapter": "none"}, "none"),
        ({"method": "decoder_only"}, "b"),
        ({"adapter": "starter"}, "starter"),
        ({"method": "med_sa_2d"}, "starter"),
    ):
        made = runtime(monkeypatch, adapters=str(adapters), **conf)
        assert made.models.name == made.served == name


def test_without_a_version_the_starter_adapter_is_served_unless_somebody_says_none(monkeypatch):
    for conf, name in (({}, "starter"), ({"adapter": "starter"}, "starter"), ({"adapter": "none"}, "none")):
        made = runtime(monkeypatch, **conf)
        assert made.models.name == made.served == name


def test_one_version_is_served_by_its_folder(monkeypatch, adapters):
    assert runtime(monkeypatch, adapters=str(adapters / "a")).models.name == "a"


def test_a_swap_holds_until_it_is_taken_back(monkeypatch, adapters):
    made = runtime(monkeypatch, adapters=str(adapters), adapter="a")
    assert made.models.name == "a"
    assert made.serve(adapters / "b") == made.served == "b"
    assert made.serve(None) == made.served == "a"


def test_of_a_store_only_what_was_promoted_is_served(monkeypatch, adapters, tmp_path_factory):
    store = VersionStore(tmp_path_factory.mktemp("store"))
    first, second = (store.add(adapters / name, {}) for name in ("a", "b"))
    assert runtime(monkeypatch, adapters=str(store.folder)).models.name == "starter"
    by_hand = store.folder / "by hand"
    shutil.copytree(adapters / "a", by_hand)
    assert runtime(monkeypatch, adapters=str(store.folder)).models.name == by_hand.name
    store.promote(first.name)
    assert runtime(monkeypatch, adapters=str(store.folder)).models.name == first.name
    task = ClickTask(runtime(monkeypatch, adapters=str(store.folder)), 2)
    assert second.name in task.info()["config"]["adapter"]


def test_what_cannot_be_served_is_said_in_a_sentence(monkeypatch, adapters):
    for conf, said in (
        ({"adapter": "a"}, "say where it is with --conf adapters"),
        ({"method": "ma_sam"}, "ma_sam takes no clicks"),
        ({"adapter": "c", "adapters": str(adapters)}, "'c' is not in .*, which holds: a, b"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            _ = runtime(monkeypatch, **conf).models
    card = adapters / "b" / "card.json"
    card.write_text(card.read_text().replace('"backbone":"lite_medsam"', '"backbone":"vit_b"'))
    card.write_text(card.read_text().replace('"backbone": "lite_medsam"', '"backbone": "vit_b"'))
    with pytest.raises(AdapterError, match="made for another backbone: vit_b, not lite_medsam"):
        _ = runtime(monkeypatch, adapters=str(adapters)).models
