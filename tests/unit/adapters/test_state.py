"""An adapter version comes back as it was saved, or is refused with what does not fit."""

import json
from datetime import UTC, datetime

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.adapters.conftest import small_sam
from tests.unit.adapters.test_placement import images, randomise

from medsa.adapters.inject import adapt
from medsa.adapters.state import AdapterBank, load_adapter, newest_adapter, save_adapter
from medsa.errors import AdapterError, NotFoundError


@pytest.fixture
def version(sam, tmp_path):
    model = randomise(adapt(sam, "msa")).eval()
    save_adapter(model, tmp_path / "v1", labels=("liver",), metrics={"after": {"dice": 0.5}})
    return model, tmp_path / "v1"


@torch.no_grad()
def test_a_version_computes_what_was_saved(sam, version):
    model, folder = version
    assert torch.equal(load_adapter(sam, folder).encode(images()), model.encode(images()))


def test_only_trained_tensors_are_kept_and_only_the_owner_reads_them(version):
    model, folder = version
    saved = load_file(folder / "adapter.safetensors")
    assert sum(t.numel() for t in saved.values()) == model.counts()["trained"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_another_base_is_refused(sam, version):
    sam.digest = "another"
    with pytest.raises(AdapterError, match="made for another file of the backbone's weights"):
        load_adapter(sam, version[1])


@torch.no_grad()
def test_another_size_of_the_input_is_for_those_alone_that_leave_the_encoder_as_it_is(
    sam, version, tmp_path
) -> None:
    other = small_sam(sam.config.name.removeprefix("small_"), image_size=64)
    with pytest.raises(AdapterError, match="made for another input size: 48, not 64"):
        load_adapter(other, version[1])
    for name in ("decoder_prompt", "unet"):
        save_adapter(adapt(sam, name), tmp_path / name)
    assert load_adapter(other, tmp_path / "decoder_prompt").image_size == 64
    with pytest.raises(AdapterError, match="another input size"):
        load_adapter(other, tmp_path / "unet")


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "bytes"])
def test_a_tensor_that_does_not_fit_is_named(sam, version, damage):
    path = version[1] / "adapter.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    if damage == "missing":
        del tensors[name]
    elif damage == "unknown":
        tensors[name := "surplus"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name].flatten()[:1]
    save_file(tensors, path)
    if damage == "bytes":
        path.write_bytes(path.read_bytes()[:100])
        name = "cannot be read"
    with pytest.raises(AdapterError, match=name):
        load_adapter(sam, version[1])


def test_a_folder_without_a_card_or_with_a_wrong_one_is_refused(sam, version, tmp_path):
    with pytest.raises(NotFoundError, match="no adapter version"):
        load_adapter(sam, tmp_path)
    card = version[1] / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"image_size": "large"}))
    with pytest.raises(AdapterError, match="image_size"):
        load_adapter(sam, version[1])


@torch.no_grad()
def test_a_bank_serves_several_versions_on_one_base_without_touching_it(tmp_path):
    sam = small_sam("tiny_vit")
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    for seed, method in enumerate(("med_sa_2d", "decoder_only", "lora")):
        save_adapter(randomise(adapt(sam, method), seed), tmp_path / method)
    bank = AdapterBank(sam, tmp_path)
    first = bank.model("med_sa_2d").encode(images())
    bank.model("lora").encode(images())
    assert torch.equal(bank.model("med_sa_2d").encode(images()), first)
    assert bank.model("lora") is bank.model("lora")
    assert all(torch.equal(value, before[name]) for name, value in sam.state_dict().items())
    for name in ("best", "..", "", "lora/../lora"):
        with pytest.raises(NotFoundError, match="there are: decoder_only, lora, med_sa_2d"):
            bank.model(name)


@torch.no_grad()
def test_a_bank_finds_versions_that_come_later_and_reads_changed_ones_anew(tmp_path):
    sam = small_sam("tiny_vit")
    bank = AdapterBank(sam, tmp_path)
    assert bank.names() == []
    save_adapter(randomise(adapt(sam, "lora"), 1), tmp_path / "a")
    assert bank.names() == ["a"]
    before = bank.model("a").adapter_digest
    save_adapter(randomise(adapt(sam, "lora"), 2), tmp_path / "a")
    assert bank.model("a").adapter_digest != before
    assert AdapterBank(sam, tmp_path / "a").names() == ["a"]


def test_the_newest_version_is_the_one_made_last_that_takes_prompts(tmp_path):
    sam = small_sam("tiny_vit")
    made = [("b", adapt(sam, "lora")), ("a", adapt(sam, "lora")), ("c", adapt(sam, "med_sa_2d"))]
    made.append(("d", adapt(small_sam("vit"), "ma_sam")))
    for day, (name, model) in enumerate(made):
        save_adapter(model, tmp_path / name, created=datetime(2026, 1, 1 + day, tzinfo=UTC))
    assert newest_adapter(tmp_path) == "c"
    assert newest_adapter(tmp_path, "lora") == "a"
    assert newest_adapter(tmp_path, "full") is None
