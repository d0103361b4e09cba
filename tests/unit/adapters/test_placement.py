"""Adapters placed into SAM: nothing changes at first, only what is named learns, the base stays the base."""

import pytest
import torch
from tests.unit.adapters.conftest import small_sam
from torch import nn

from medsa.adapters.encoder import transformer_blocks
from medsa.adapters.inject import adapt, gradient_count
from medsa.adapters.method import read_method, read_methods
from medsa.adapters.state import load_adapter, save_adapter
from medsa.errors import ConfigurationError
from medsa.sam import build_sam

METHODS = {method.name: method for method in read_methods()}
BOX = torch.tensor([[10.0, 12, 40, 30], [5, 5, 20, 45]])
POINTS = torch.tensor([[[20.0, 20], [40, 30]], [[30, 40], [3, 3]]])
LABELS = torch.tensor([[1, 0], [1, -1]])


def randomise(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _, _, parameter in model.trained_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


def images(count=2, size=48, seed=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def answers(model, pictures):
    out = []
    for embedding in model.encode(pictures):
        out += model.decode(embedding[None], boxes=BOX)
        out += model.decode(embedding[None], points=POINTS, point_labels=LABELS, multimask=True)
    return out


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.head is None])
def test_a_fresh_method_answers_exactly_as_the_base(sam, name):
    model = adapt(sam, name).eval()
    for ours, base in zip(answers(model, images()), answers(sam, images()), strict=True):
        assert torch.equal(ours > 0, base > 0)
        torch.testing.assert_close(ours, base, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.head is not None])
def test_a_fresh_promptless_method_embeds_exactly_as_the_base(sam, name):
    model = adapt(sam, name).eval()
    slab = images(5)
    assert torch.equal(model.encode(slab[None])[0], sam.encode(slab))
    logits = model.segment(slab)
    assert logits.shape == (5, METHODS[name].head.classes, 48, 48)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_switched_off_is_the_base_bit_for_bit_whatever_was_learnt(sam, name):
    before = {key: value.clone() for key, value in sam.state_dict().items()}
    base = answers(sam, images())
    model = randomise(adapt(sam, name)).eval()
    changed = model.encode(images())
    with model.switched_off():
        for ours, theirs in zip(answers(model, images()), base, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(model.encode(images()), sam.encode(images()))
    assert all(torch.equal(value, before[key]) for key, value in sam.state_dict().items())
    if any(METHODS[name].encoder.model_dump(include={"attention", "mlp", "path"}).values()):
        assert not torch.equal(changed, sam.encode(images()))


def loss(model, method, slab):
    if method.head is not None:
        return model.segment(slab).square().mean()
    embedding = model.encode(slab[None])[0] if method.depth > 1 else model.encode(slab)
    logits, predicted = model.decode(embedding, boxes=BOX[:1].expand(len(slab), -1))
    logits = model.refine(logits, slab.sigmoid())
    return logits.square().mean() + predicted.square().mean()


@pytest.mark.parametrize("name", [n for n in METHODS if n != "sam"])
def test_ten_steps_change_what_the_method_names_and_not_one_byte_else(sam, name):
    method = METHODS[name]
    model = randomise(adapt(sam, name), seed=2)
    learning = [parameter for _, _, parameter in model.trained_parameters()]
    frozen = {
        key: value.clone()
        for key, value in [*sam.state_dict().items(), *model.adapters.state_dict().items()]
        if key not in {n for _, n, _ in model.trained_parameters()}
    }
    optimiser = torch.optim.Adam(learning, lr=1e-3)
    start = [parameter.detach().clone() for parameter in learning]
    for _ in range(10):
        optimiser.zero_grad()
        loss(model, method, images(method.depth)).backward()
        optimiser.step()
    changed = {
        place
        for (place, _, parameter), old in zip(model.trained_parameters(), start, strict=True)
        if not torch.equal(parameter, old)
    }
    assert changed == {place for place, count in model.counts()["parts"].items() if count}
    after = {**sam.state_dict(), **model.adapters.state_dict()}
    assert all(torch.equal(after[key], value) for key, value in frozen.items())
    assert gradient_count(model) > 0
    assert all(parameter.grad is None for parameter in sam.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", ["med_sa", "ma_sam_prompted"])
def test_a_slab_of_one_slice_equals_the_image(sam, name):
    model = randomise(adapt(sam, name)).eval()
    torch.testing.assert_close(model.encode(images(1)[None])[0], model.encode(images(1)))


@torch.no_grad()
def test_med_sa_on_one_slice_equals_med_sa_2d(sam):
    deep, flat = randomise(adapt(sam, "med_sa")), adapt(sam, "med_sa_2d")
    flat.adapters.load_state_dict(deep.adapters.state_dict(), strict=False)
    torch.testing.assert_close(deep.encode(images(1)[None])[0], flat.encode(images(1)))


@torch.no_grad()
def test_permuting_slices_permutes_embeddings_where_depth_has_no_positions():
    sam = small_sam("vit")
    for block in transformer_blocks(sam.image_encoder):
        block.attn.rel_pos_h.zero_()
        block.attn.rel_pos_w.zero_()
    model = randomise(adapt(sam, "med_sa")).eval()
    order = torch.tensor([3, 0, 4, 1, 2])
    slab = images(5)
    torch.testing.assert_close(
        model.encode(slab[order][None])[0], model.encode(slab[None])[0][order], rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_in_windowed_blocks_depth_joins_the_same_position_of_all_slices(sam):
    """A change in one slice reaches the others at its own position and nowhere else."""
    method = read_method("med_sa")
    wide = method.model_copy(update={"encoder": method.encoder.model_copy(update={"ratio": 1.0})})
    model = randomise(adapt(sam, wide))
    adaptation, block = model.adapters.encoder, transformer_blocks(sam.image_encoder)[0]
    width = block.attn.qkv.in_features
    x = torch.randn(5, 20, 20, width)
    moved = x.clone()
    moved[2, 13, 17] += torch.randn(width)
    adaptation.encoder_attention = nn.ModuleDict()
    difference = adaptation.run_block(0, block, moved, 5) - adaptation.run_block(0, block, x, 5)
    elsewhere = (difference.abs().sum(-1) > 1e-5)[[0, 1, 3, 4]]
    assert elsewhere[:, 13, 17].all()
    reach = 1 if hasattr(block, "local_conv") else 0
    elsewhere[:, 13 - reach : 14 + reach, 17 - reach : 18 + reach] = False
    assert not elsewhere.any()


@torch.no_grad()
def test_masks_hear_the_prompt_through_the_adapter_and_each_image_its_own(sam):
    model = randomise(adapt(sam, "med_sa_2d")).eval()
    embedding = model.encode(images())
    both, _ = model.decode(embedding, boxes=BOX)
    for n in range(2):
        alone, _ = model.decode(embedding[n : n + 1], boxes=BOX[n : n + 1])
        torch.testing.assert_close(both[n : n + 1], alone, rtol=1e-4, atol=1e-5)
    swapped, _ = model.decode(embedding.flip(0), boxes=BOX.flip(0))
    torch.testing.assert_close(swapped.flip(0), both, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.decode(embedding, boxes=BOX.flip(0))[0], both)


def test_the_global_path_is_a_highway_for_the_gradient():
    """With every frozen layer blocking gradients, the first block's global adapter still gets one."""
    sam = small_sam("vit")
    model = randomise(adapt(sam, "gl_med_sa"))
    adaptation = model.adapters.encoder
    x = torch.randn(1, 5, 5, 32)
    for n, block in enumerate(transformer_blocks(sam.image_encoder)):
        with torch.no_grad():
            local = adaptation.run_block(n, block, x, 1) - x - adaptation.encoder_global[str(n)](x)
        x = x + local + adaptation.encoder_global[str(n)](x)
    x.square().sum().backward()
    assert adaptation.encoder_global["0"].down.weight.grad.abs().sum() > 0


def test_checkpointing_gives_the_same_gradients(sam):
    gradients = []
    for checkpointing in (False, True):
        model = randomise(adapt(sam, "ma_sam_prompted"))
        model.checkpointing = checkpointing
        loss(model, model.method, images(5)).backward()
        gradients.append([p.grad for _, _, p in model.trained_parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_adapters_in_the_last_blocks_only_leave_the_rest_without_gradient_or_change(sam):
    whole = read_method("med_sa_2d")
    method = whole.model_copy(update={"encoder": whole.encoder.model_copy(update={"last": 1})})
    model = adapt(sam, method)
    last = str(len(transformer_blocks(sam.image_encoder)) - 1)
    assert list(model.adapters.encoder.encoder_attention) == [last]
    kept = [kept_for_the_backward_pass(adapt(sam, kind)) for kind in (method, "med_sa_2d", "full")]
    assert kept[0] < kept[1] < kept[2]


def kept_for_the_backward_pass(model):
    """Bytes that a forward pass of the encoder saves, parameters left out."""
    parameters = {p.data_ptr() for p in (*model.parameters(), *model.base.parameters())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.encode(images())
    return sum(kept.values())


def test_the_papers_sizes_on_vit_h():
    with torch.device("meta"):
        sam = build_sam("vit_h")
        med_sa, gl_med_sa = (adapt(sam, name).counts() for name in ("med_sa_2d", "gl_med_sa"))
    encoder = {name: count for name, count in med_sa["parts"].items() if name.startswith("encoder")}
    assert sum(encoder.values()) == pytest.approx(13.2e6, rel=0.05)
    assert sum(gl_med_sa["parts"].values()) == pytest.approx(19.8e6, rel=0.05)
    assert 1.9 < med_sa["trained_percent"] < 2.2
    assert med_sa["parts"]["decoder"] < 0.2e6
    with torch.device("meta"):
        assert adapt(sam, "full").counts()["trained_percent"] == 100


STACKED = [n for n, m in METHODS.items() if m.head is None and n != "sam"]


@pytest.mark.parametrize("name", STACKED)
def test_a_method_on_a_taught_one_starts_as_that_one_and_leaves_it_alone(sam, name, tmp_path):
    taught = randomise(adapt(sam, "decoder_prompt")).eval()
    with torch.no_grad():
        expected = answers(taught, images())
        model = adapt(sam, name, onto=taught).eval()
        for ours, theirs in zip(answers(model, images()), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        save_adapter(randomise(model, 5), tmp_path)
        again = load_adapter(sam, tmp_path)
        for loaded, saved in zip(answers(again, images()), answers(model, images()), strict=True):
            assert torch.equal(loaded, saved)
        assert all(torch.equal(*pair) for pair in zip(answers(taught, images()), expected, strict=True))


def test_what_is_carried_along_does_not_learn(sam):
    model = adapt(sam, "med_sa_2d", onto=randomise(adapt(sam, "decoder_prompt")))
    assert model.counts()["parts"] == adapt(sam, "med_sa_2d").counts()["parts"]


def test_adapters_are_placed_on_taught_parts_only(sam):
    with pytest.raises(ConfigurationError, match="adapters of its own"):
        adapt(sam, "med_sa_2d", onto=adapt(sam, "gl_med_sa"))
