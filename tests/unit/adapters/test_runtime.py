"""Adapted models behind the runtime: asked with what they were taught, equal embeddings shared."""

import threading

import numpy as np
import pytest
import torch
from tests.unit.adapters.test_placement import randomise

from medsa.adapters.inject import adapt
from medsa.adapters.state import load_adapter, save_adapter
from medsa.data.volume import Volume
from medsa.errors import AdapterError, ConfigurationError, NotFoundError
from medsa.prompts.prompt import Prompt
from medsa.sam import build_sam
from medsa.segmenter import Segmenter, ServedModels, Session
from medsa.segmenter.served import CURRENT, NONE, choices

CLICK = Prompt(foreground=[[17, 15, 0]])
BOX = Prompt(box=[[8, 8, 0], [25, 22, 0]])


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam("lite_medsam", image_size=64)


@pytest.fixture
def base(sam):
    return Segmenter(sam)


@pytest.fixture(scope="module")
def volume():
    voxels = np.random.default_rng(0).normal(100, 5, (40, 30, 2))
    voxels[10:25, 8:22] += 60
    return Volume(np.asfortranarray(voxels.astype(np.int16)), np.eye(4), "MR")


def learnt(sam, method, seed=1, scale=0.05):
    model = randomise(adapt(sam, method), seed).eval()
    for _, _, parameter in model.trained_parameters():
        parameter.data *= scale
    return model


@pytest.mark.parametrize("method", ["sam", "med_sa", "med_sa_2d", "decoder_only", "lora", "ma_sam_prompted"])
def test_a_method_that_has_learnt_nothing_gives_the_bases_masks(sam, base, volume, method):
    adapted = base.beside(adapt(sam, method).eval())
    for prompt in (CLICK, BOX):
        ours, theirs = (s.segment_slice(volume, prompt, 0).mask for s in (adapted, base))
        assert (ours == theirs).all()


def test_only_an_adapter_of_the_encoder_costs_an_embedding(sam, base, volume):
    base.segment_slice(volume, CLICK, 0)
    decoder_only = base.beside(learnt(sam, "decoder_only"))
    assert decoder_only.segment_slice(volume, CLICK, 0).cached
    for seed in (1, 2):
        assert not base.beside(learnt(sam, "med_sa_2d", seed)).segment_slice(volume, CLICK, 0).cached
    assert base.beside(learnt(sam, "med_sa_2d", 2)).segment_slice(volume, CLICK, 0).cached
    assert len(base.cache) == 3


def test_digests_follow_what_was_learnt(sam):
    model = learnt(sam, "med_sa_2d")
    whole, encoder = model.adapter_digest, model.encoder_digest
    with torch.no_grad():
        model.adapters.decoder.mlp["0"].down.weight.add_(1)
    assert model.adapter_digest != whole
    assert model.encoder_digest == encoder
    with torch.no_grad():
        model.adapters.encoder.encoder_mlp["0"].down.weight.add_(1)
    assert model.encoder_digest != encoder
    with model.switched_off():
        assert model.adapter_digest == model.encoder_digest == ""
    assert adapt(sam, "sam").adapter_digest == adapt(sam, "decoder_only").encoder_digest == ""


def test_an_answer_of_another_adapter_is_not_given_again(sam, base, volume):
    session = Session()
    first, second = (base.beside(learnt(sam, "decoder_only", seed, 0.3)) for seed in (1, 2))
    before = first.segment_slice(volume, BOX, 0, session=session)
    after = second.segment_slice(volume, BOX, 0, session=session)
    assert after.timings["decode"] > 0
    assert after.score != before.score
    assert after.score == second.segment_slice(volume, BOX, 0).score
    again = first.segment_slice(volume, BOX, 0, session=session)
    assert (again.mask == before.mask).all()
    assert again.timings["decode"] == 0


def test_an_adapter_that_was_taught_clicks_is_asked_with_clicks(sam, tmp_path, monkeypatch, volume):
    model = learnt(sam, "decoder_only")
    model.trained_prompts, model.multimask = ("point", "box", "mask"), False
    save_adapter(model, tmp_path / "clicks")
    save_adapter(learnt(sam, "decoder_only"), tmp_path / "boxes")
    asked = []
    for name in ("clicks", "boxes"):
        loaded = load_adapter(sam, tmp_path / name)
        decode = loaded.decode

        def note(embedding, *, name=name, decode=decode, **prompts):
            asked.append((name, {key for key, value in prompts.items() if value is not None}, prompts))
            return decode(embedding, **prompts)

        monkeypatch.setattr(loaded, "decode", note)
        Segmenter(loaded).segment_slice(volume, CLICK, 0)
    (first, points, given), (second, boxes, _) = asked
    assert (first, second) == ("clicks", "boxes")
    assert "points" in points
    assert not given["multimask"]
    assert "boxes" in boxes
    assert "points" not in boxes


def test_a_method_without_prompts_is_refused_by_the_click_models(sam, base):
    with pytest.raises(ConfigurationError, match="no clicks and no boxes"):
        base.beside(adapt(sam, "ma_sam"))


def test_copies_of_the_base_keep_its_batch_statistics_while_they_learn(sam):
    model = adapt(sam, "full").train()
    before = {key: value.clone() for key, value in model.adapters.state_dict().items() if "running" in key}
    model.encode(torch.rand(2, 3, 64, 64)).sum().backward()
    assert before
    assert all(torch.equal(model.adapters.state_dict()[key], value) for key, value in before.items())


@pytest.fixture
def versions(sam, tmp_path):
    """Two versions of one method and one without prompts, in a folder."""
    for seed, name in enumerate(("first", "second")):
        save_adapter(learnt(sam, "decoder_only", seed, 0.3), tmp_path / name)
    save_adapter(adapt(sam, "ma_sam"), tmp_path / "unasked")
    return tmp_path


def test_a_request_names_its_adapter_or_gets_the_served_one(sam, versions, volume):
    models = ServedModels(sam, 64, versions)
    assert choices("vit_b", versions) == [CURRENT, "first", "second", "unasked", NONE]
    assert models.name == NONE
    assert models.serve(versions / "first") == models.name == "first"
    scores = {}
    for name in ("", CURRENT, "first", "second", NONE):
        known, segmenter = models.segmenter(name)
        assert known == ("first" if name in ("", CURRENT) else name)
        scores[name] = segmenter.segment_slice(volume, BOX, 0).score
    assert scores[""] == scores[CURRENT] == scores["first"]
    assert len(set(scores.values())) == 3
    assert len(models.segmenter()[1].cache) == 1


def test_a_request_on_its_way_ends_with_the_adapter_it_began_with(sam, versions, volume):
    models = ServedModels(sam, 64, versions)
    models.serve(versions / "first")
    _, begun = models.segmenter()
    expected = begun.segment_slice(volume, BOX, 0).score
    models.serve(versions / "second")
    assert begun.segment_slice(volume, BOX, 0).score == expected
    assert models.segmenter()[1].segment_slice(volume, BOX, 0).score != expected
    models.serve(None)
    assert models.segmenter()[1].sam is sam


def test_what_cannot_be_served_changes_nothing(sam, versions):
    models = ServedModels(sam, 64, versions)
    models.serve(versions / "first")
    (versions / "second" / "adapter.safetensors").write_bytes(b"damaged")
    for folder, error in (("second", AdapterError), ("unasked", ConfigurationError), ("x", NotFoundError)):
        with pytest.raises(error):
            models.serve(versions / folder)
        with pytest.raises(error):
            models.segmenter(folder)
    assert models.name == "first"
    assert models.segmenter()[0] == "first"


def test_swaps_and_requests_at_once_never_mix_adapters(sam, versions, volume):
    models = ServedModels(sam, 64, versions)
    expected = {}
    for name in ("first", "second", NONE):
        expected[name] = models.segmenter(name)[1].segment_slice(volume, BOX, 0).score
    wrong, stop = [], threading.Event()

    def ask():
        session = Session()
        while not stop.is_set():
            name, segmenter = models.segmenter()
            if segmenter.segment_slice(volume, BOX, 0, session=session).score != expected[name]:
                wrong.append(name)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(30):
        models.serve((versions / "first", versions / "second", None)[turn % 3])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
