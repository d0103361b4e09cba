"""Labels that are told with a prompt: nothing untaught, an answer of its own each, and kept in versions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.adapters.test_placement import images
from tests.unit.adapters.test_placement import randomise as taught

from medsa.adapters.inject import adapt
from medsa.adapters.method import Method, Refinement
from medsa.adapters.state import load_adapter, save_adapter
from medsa.segmenter import Segmenter

__all__ = ["one_thread"]

NAMED = Method(
    name="named", title="", paper="", trains=("mask_decoder",), refiner=Refinement(width=8), names=("a", "b")
)
POINT = torch.tensor([[[20.0, 30.0]]])


def prompts(count, kind="point"):
    if kind == "box":
        return {"boxes": torch.tensor([[8.0, 9.0, 30.0, 33.0]]).expand(count, -1)}
    return {"points": POINT.expand(count, -1, -1), "point_labels": torch.ones(count, 1)}


def answer(model, count=1, multimask=False, kind="point", own=False):
    """What a model says of `count` prompts, on one image or each on its `own`."""
    embedding = model.encode(images()[:1])
    embedding = embedding.expand(count, -1, -1, -1) if own else embedding
    logits, scores = model.decode(embedding, **prompts(count, kind), multimask=multimask)
    return model.refine(logits, torch.full((count, 1, 48, 48), 0.3)), scores


@given(st.sampled_from(["point", "box"]), st.booleans(), st.sampled_from(["a", "b", "c", ""]))
@settings(max_examples=10, deadline=None)
@torch.no_grad()
def test_untaught_a_name_changes_nothing(kind, multimask, label):
    model = adapt(small_sam("tiny_vit"), NAMED)
    for told, silent in zip(
        answer(model.about(label), 1, multimask, kind), answer(model, 1, multimask, kind), strict=True
    ):
        assert torch.equal(told, silent)


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_each_name_has_an_answer_of_its_own_and_others_say_nothing(compiled):
    model = taught(adapt(small_sam("tiny_vit"), NAMED))
    if compiled:
        model.accelerate()
    silent = answer(model)[0]
    a, b = (answer(model.about(label))[0] for label in "ab")
    assert not torch.allclose(a, b, atol=0.01)
    assert not torch.allclose(a, silent, atol=0.01)
    assert torch.equal(answer(model.about("c"))[0], silent)
    assert torch.equal(answer(model.about("a").about("c"))[0], silent)
    for own in (False, True):
        together = answer(model.about(["a", "c", "b"]), 3, own=own)[0]
        for one, alone in zip(together, (a, silent, b), strict=True):
            assert torch.allclose(one, alone[0], atol=1e-4)


@torch.no_grad()
def test_decoder_and_refiner_both_hear_it():
    model = taught(adapt(small_sam("tiny_vit"), NAMED))
    told = model.about("a")
    embedding, picture = model.encode(images()[:1]), torch.rand(1, 1, 48, 48)
    logits = model.decode(embedding, **prompts(1))[0]
    assert not torch.allclose(told.decode(embedding, **prompts(1))[0], logits, atol=1e-4)
    assert not torch.allclose(told.refine(logits, picture), model.refine(logits, picture), atol=0.01)


def test_who_is_told_is_another_model_in_memory_and_the_same_in_all_else():
    sam = small_sam("tiny_vit")
    model = taught(adapt(sam, NAMED))
    a, b = model.about("a"), model.about("b")
    assert len({model.adapter_digest, a.adapter_digest, b.adapter_digest}) == 3
    assert a.adapter_digest == model.about("a").adapter_digest
    assert a.encoder_digest == model.encoder_digest == ""
    assert a.adapters is model.adapters
    assert model.about("c") is model
    assert a.about("c").adapter_digest == model.adapter_digest
    assert sam.about("a") is sam
    assert adapt(sam, "decoder_only").about("a").told is None
    with model.switched_off():
        assert torch.equal(answer(model)[0], answer(sam)[0])
    segmenter = Segmenter(model)
    assert segmenter.about("c") is segmenter
    assert segmenter.about("a").cache is segmenter.cache


@torch.no_grad()
def test_a_version_keeps_its_names(tmp_path):
    sam = small_sam("tiny_vit")
    model = taught(adapt(sam, NAMED))
    save_adapter(model, tmp_path / "v1")
    loaded = load_adapter(sam, tmp_path / "v1")
    assert loaded.method.names == ("a", "b")
    for label in ("a", "b", "c"):
        assert torch.equal(answer(loaded.about(label))[0], answer(model.about(label))[0])
    assert loaded.counts()["parts"]["names"] == model.adapters.names.numel()


@torch.no_grad()
def test_further_names_are_learnt_beside_those_that_are_known():
    model = taught(adapt(small_sam("tiny_vit"), NAMED))
    before = {label: answer(model.about(label))[0] for label in "abc"}
    learnt = model.learn_names(["c", "a"])
    assert model.method.names == ("a", "b", "c")
    assert learnt.requires_grad
    assert len(learnt) == 3
    for label, known in before.items():
        assert torch.equal(answer(model.about(label))[0], known)


@pytest.mark.parametrize("method", ["lora", "decoder_refined", "decoder_only"])
@torch.no_grad()
def test_what_is_placed_on_it_knows_its_names(method):
    sam = small_sam("tiny_vit")
    for refined in (True, False):
        changed = {} if refined else {"refiner": None}
        below = taught(adapt(sam, NAMED.model_copy(update=changed)))
        model = adapt(sam, method, onto=below)
        assert model.method.names == ("a", "b")
        for label in "abc":
            assert torch.allclose(answer(model.about(label))[0], answer(below.about(label))[0], atol=1e-4)


def test_only_what_is_told_learns():
    model = adapt(small_sam("tiny_vit"), NAMED)
    answer(model.about(["a", "", "a"]), 3, own=True)[0].square().mean().backward()
    grown = model.adapters.names.grad.abs().sum(dim=1)
    assert grown[0] > 0
    assert grown[1] == 0
