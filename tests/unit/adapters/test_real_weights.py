"""On LiteMedSAM's own weights: a fresh method is the base, and the base comes back after learning."""

import pytest
import torch
from tests.unit.adapters.test_placement import METHODS

from medsa.adapters.inject import adapt
from medsa.sam import load_sam

SIDE = 128
BOXES = torch.tensor([[30.0, 25, 100, 90], [10, 10, 60, 120]])
POINTS = torch.tensor([[[64.0, 50], [10, 10]], [[40, 60], [100, 100]]])
LABELS = torch.tensor([[1, 0], [1, -1]])


@pytest.fixture(scope="module")
def sam():
    torch.set_num_threads(1)  # as each test has it: sums differ in the last bit with more
    return load_sam("lite_medsam", image_size=SIDE, accelerate=False)


@pytest.fixture(scope="module")
def picture():
    """A bright ellipse on a noisy ground."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    inside = ((x - 64) / 35.0) ** 2 + ((y - 57) / 30.0) ** 2 < 1
    noise = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return (0.2 * noise + 0.6 * inside).expand(1, 3, -1, -1).contiguous()


def masks(model, embedding):
    return [
        model.decode(embedding, boxes=BOXES),
        model.decode(embedding, points=POINTS, point_labels=LABELS),
        model.decode(embedding, points=POINTS[:, :1], point_labels=LABELS[:, :1], multimask=True),
        model.decode(embedding, points=POINTS, point_labels=LABELS, boxes=BOXES),
    ]


@pytest.fixture(scope="module")
def base(sam, picture):
    with torch.no_grad():
        embedding = sam.encode(picture)
        return embedding, masks(sam, embedding)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_method_is_the_base_with_boxes_and_with_points(sam, picture, base, name):
    embedding, expected = base
    model = adapt(sam, name).eval()
    assert torch.equal(model.encode(picture), embedding)
    if METHODS[name].head is not None:
        return
    for (ours, score), (theirs, predicted) in zip(masks(model, embedding), expected, strict=True):
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(score, predicted, rtol=1e-4, atol=1e-4)
    assert (expected[0][0][0] > 0).any()


@pytest.mark.parametrize("name", ["med_sa", "full", "ma_sam_prompted", "msa", "gl_med_sa"])
def test_after_a_step_of_learning_the_base_comes_back_bit_for_bit(sam, picture, base, name):
    embedding, expected = base
    model = adapt(sam, name)
    learning = [parameter for _, _, parameter in model.trained_parameters()]
    optimiser = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        logits, _ = model.decode(model.encode(picture), boxes=BOXES[:1])
        logits.sigmoid().mean().backward()
        optimiser.step()
    with torch.no_grad():
        model.eval()
        assert not torch.equal(model.encode(picture), embedding)
        with model.switched_off():
            assert torch.equal(model.encode(picture), embedding)
            for ours, theirs in zip(masks(model, embedding), expected, strict=True):
                assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("name", METHODS)
def test_what_learns_is_named_once_and_by_its_place(sam, name):
    model = adapt(sam, name)
    found = list(model.trained_parameters())
    assert len({parameter_name for _, parameter_name, _ in found}) == len(found)
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for *_, p in found}
    counts = model.counts()
    for place, number in counts["parts"].items():
        assert number == sum(p.numel() for where, _, p in found if where == place)


@torch.no_grad()
def test_the_order_of_a_batch_does_not_matter(sam, picture):
    model = adapt(sam, "med_sa_2d").eval()
    generator = torch.Generator().manual_seed(0)
    for _, _, parameter in model.trained_parameters():
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    pair = torch.cat([picture, picture.flip(3)])
    logits, scores = model.decode(model.encode(pair), boxes=BOXES)
    turned, turned_scores = model.decode(model.encode(pair.flip(0)), boxes=BOXES.flip(0))
    torch.testing.assert_close(turned.flip(0), logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(turned_scores.flip(0), scores, rtol=1e-3, atol=1e-3)
