"""The refiner mends logits on the slice's own pixels, changes nothing untaught, and goes with its version."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.adapters.test_placement import images
from tests.unit.adapters.test_placement import randomise as taught

from medsa.adapters.inject import adapt
from medsa.adapters.method import Method, Refinement
from medsa.adapters.refiner import Refiner
from medsa.adapters.state import load_adapter, save_adapter

__all__ = ["one_thread"]

REFINED = Method(name="refined", title="", paper="", trains=("mask_decoder",), refiner=Refinement(width=8))


def asked(count=2, masks=1, side=48, colours=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        5 * torch.randn(count, masks, side, side, generator=generator),
        torch.rand(count, colours, 256, 256, generator=generator),
    )


@given(
    st.integers(1, 3), st.integers(1, 3), st.sampled_from([16, 32, 48, 50, 256]), st.sampled_from([1, 3]),
    st.integers(1, 4), st.integers(1, 4),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_untaught_it_changes_nothing_on_any_grid(count, masks, side, colours, levels, stride):
    logits, pictures = asked(count, masks, side, colours)
    assert not Refiner(8, levels, stride)(logits, pictures).any()


@torch.no_grad()
def test_each_mask_is_mended_by_itself_and_by_its_own_picture():
    refiner = taught(adapt(small_sam("tiny_vit"), REFINED)).adapters.refiner
    logits, pictures = asked(2, 3)
    together = refiner(logits, pictures)
    assert together.abs().max() > 0.01
    for n in range(2):
        for m in range(3):
            alone = refiner(logits[n : n + 1, m : m + 1], pictures[n : n + 1])
            assert torch.allclose(alone[0, 0], together[n, m], atol=1e-4)
    swapped = refiner(logits, pictures.flip(0))
    assert not torch.allclose(swapped, together, atol=1e-3)


@torch.no_grad()
def test_a_version_has_its_refiner_and_embeddings_stay_the_bases(tmp_path):
    sam = small_sam("tiny_vit")
    model = adapt(sam, REFINED)
    before = model.adapter_digest
    taught(model)
    assert model.adapter_digest != before
    assert model.encoder_digest == ""
    logits, pictures = asked()
    save_adapter(model, tmp_path / "v1")
    loaded = load_adapter(sam, tmp_path / "v1")
    assert torch.equal(loaded.refine(logits, pictures), model.refine(logits, pictures))
    with loaded.switched_off():
        assert torch.equal(loaded.refine(logits, pictures), logits)
    assert torch.equal(sam.refine(logits, pictures), logits)


@torch.no_grad()
def test_compiled_it_mends_alike_until_it_learns_more():
    model = taught(adapt(small_sam("tiny_vit"), REFINED))
    logits, pictures = asked()
    expected = model.refine(logits, pictures)
    model.accelerate()
    assert "refiner" in model._compiled
    found = model.refine(logits, pictures)
    assert not torch.equal(found, expected)  # in another precision or order: it was compiled that answered
    assert torch.allclose(found, expected, atol=0.02 * float((expected - logits).abs().max()))
    many = torch.cat([logits, logits], dim=1)
    assert torch.allclose(model.refine(many, pictures)[:, :1], expected, atol=1e-4)
    model.adapters.refiner.out.bias.add_(1)
    assert torch.allclose(model.refine(logits, pictures), expected + 1, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "med_sa_2d"])
@torch.no_grad()
def test_what_is_placed_on_it_keeps_what_it_was_taught(method):
    sam = small_sam("tiny_vit")
    below = taught(adapt(sam, REFINED))
    model = adapt(sam, method, onto=below)
    logits, pictures = asked()
    assert torch.equal(model.refine(logits, pictures), below.refine(logits, pictures))
    assert torch.allclose(model.encode(images()), sam.encode(images()), atol=1e-5)
    assert any(place == "refiner" for place, _, _ in model.trained_parameters())
