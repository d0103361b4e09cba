import copy
import stat
import threading

import pytest
import torch
from torch import nn

from medsa.sam import load_sam
from medsa.sam.folded_decoder import FoldedDecoder

KINDS = ["vit", "tiny_vit"]


def boxes(count, side=64):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(count)) * side
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def overlap(first, second):
    first, second = first > 0, second > 0
    return ((first & second).sum() / (first | second).sum().clamp(min=1)).item()


@pytest.fixture
def pair(small_sam):
    """The same small model twice: with torch alone, and accelerated."""

    def make(kind="tiny_vit"):
        plain, fast = small_sam(kind), small_sam(kind)
        fast.accelerate()
        assert set(fast._compiled) == {"encoder", "mask", "masks"}
        return plain, fast

    return make


@pytest.fixture
def warm(tmp_path_factory, monkeypatch):
    """A cache folder that all tests of this file share, so that each model is compiled once."""
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path_factory.getbasetemp() / "compiled-once"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("warm")
def test_an_accelerated_encoder_agrees_with_torch(kind, pair):
    plain, fast = pair(kind)
    images = torch.rand(3, 3, 64, 64)
    assert torch.allclose(fast.encode(images), plain.encode(images), atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 8, 19])
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.usefixtures("warm")
def test_an_accelerated_decoder_agrees_with_torch_for_any_prompts(count, multimask, pair):
    plain, fast = pair()
    embedding = plain.encode(torch.rand(1, 3, 64, 64))
    points, labels = boxes(count).view(count, 2, 2), torch.tensor([1, 0]).expand(count, 2)
    masks = torch.randn(count, 1, 16, 16)
    for prompts in (
        {"boxes": boxes(count)},
        {"points": points, "point_labels": labels},
        {"points": points, "point_labels": labels, "boxes": boxes(count), "masks": masks},
        {"boxes": boxes(count), "masks": masks[:1]},
        {"masks": masks},
    ):
        logits, scores = fast.decode(embedding, multimask=multimask, **prompts)
        expected, expected_scores = plain.decode(embedding, multimask=multimask, **prompts)
        assert logits.shape == expected.shape
        assert torch.allclose(logits, expected, atol=1e-4)
        assert torch.allclose(scores, expected_scores, atol=1e-4)


def test_the_folded_decoder_is_the_stock_one_rearranged(small_sam):
    sam = small_sam()
    embedding, sparse = torch.randn(1, 32, 4, 4).double(), torch.randn(3, 4, 32).double()
    dense = torch.randn(3, 32, 4, 4).double()
    sam = sam.double()
    for multimask in (False, True):
        folded = FoldedDecoder(sam.mask_decoder, sam.dense_pe, multimask)
        expected = sam.mask_decoder(embedding, sam.dense_pe, sparse, dense, multimask)
        for value, other in zip(folded(embedding, dense, sparse), expected, strict=True):
            assert torch.allclose(value, other, atol=1e-10)


def test_masks_of_the_embedded_backbone_agree_on_a_real_image(lite_medsam, ct_image):
    plain = copy.deepcopy(lite_medsam)
    embedding, expected = lite_medsam.encode(ct_image), plain.encode(ct_image)
    assert lite_medsam._compiled
    assert not plain._compiled
    assert (embedding - expected).abs().max() < 1e-4
    prompts = {"boxes": torch.cat([boxes(10, 255), torch.tensor([[60.0, 40.0, 190.0, 200.0]])])}
    logits, scores = lite_medsam.decode(embedding, **prompts)
    expected_logits, expected_scores = plain.decode(expected, **prompts)
    assert (logits - expected_logits).abs().max() < 1e-3
    assert (scores - expected_scores).abs().max() < 1e-4
    assert overlap(logits, expected_logits) >= 0.9999


@pytest.mark.usefixtures("warm")
def test_a_changed_weight_is_never_answered_from_the_old_ones(pair):
    _, fast = pair()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        fast.image_encoder.neck[0].weight.mul_(2)
        fast.mask_decoder.mask_tokens.weight.add_(1)
        expected = fast.image_encoder(image)
    assert torch.equal(fast.encode(image), expected)
    assert torch.equal(
        fast.decode(expected, boxes=boxes(2))[0], copy.deepcopy(fast).decode(expected, boxes=boxes(2))[0]
    )


@pytest.mark.parametrize("change", ["wrap", "hook", "replace"])
@pytest.mark.usefixtures("warm")
def test_a_changed_structure_is_never_answered_from_the_old_one(change, pair):
    _, fast = pair()
    image = torch.rand(1, 3, 64, 64)
    before = fast.encode(image)
    stage = fast.image_encoder.layers[1]
    if change == "wrap":
        stage.blocks[0] = nn.Sequential(stage.blocks[0], nn.Tanh())
    elif change == "hook":
        stage.blocks[0].register_forward_hook(lambda module, inputs, output: output * 2)
    else:
        stage.blocks[0] = copy.deepcopy(stage.blocks[0])
        stage.blocks[0].mlp.fc1.weight.data.mul_(3)
    with torch.no_grad():
        expected = fast.image_encoder(image)
    assert not torch.allclose(before, expected, atol=1e-3)
    assert torch.equal(fast.encode(image), expected)
    fast.accelerate()
    assert torch.allclose(fast.encode(image), expected, atol=1e-4)


@pytest.mark.usefixtures("warm")
def test_a_decoder_that_is_not_stock_runs_as_it_is(small_sam):
    sam = small_sam()
    attention = sam.mask_decoder.transformer.layers[0].cross_attn_token_to_image
    attention.k_proj = nn.Sequential(attention.k_proj, nn.Tanh())
    sam.accelerate()
    assert set(sam._compiled) == {"encoder"}
    assert sam.decode(torch.randn(1, 32, 4, 4), boxes=boxes(2))[0].shape == (2, 1, 16, 16)


@pytest.mark.usefixtures("warm")
def test_gradients_flow_through_an_accelerated_model(pair):
    _, fast = pair()
    embedding = torch.randn(1, 32, 4, 4, requires_grad=True)
    fast.decode(embedding, boxes=boxes(1))[0].sum().backward()
    assert embedding.grad is not None


@pytest.mark.usefixtures("warm")
def test_requests_at_once_get_their_own_answers(pair):
    plain, fast = pair()
    embedding = plain.encode(torch.rand(1, 3, 64, 64))
    asked = [boxes(count) for count in range(1, 9)]
    expected = [plain.decode(embedding, boxes=prompt)[0] for prompt in asked]
    answers: dict[int, torch.Tensor] = {}

    def ask(i):
        for _ in range(5):
            answers[i] = fast.decode(embedding, boxes=asked[i])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, value in enumerate(expected):
        assert torch.allclose(answers[i], value, atol=1e-4)


def test_what_was_compiled_is_kept_privately_and_used_again(pair, cache, caplog):
    caplog.set_level("INFO", logger="medsa.sam")
    pair()
    assert caplog.text.count("preparing") == 3
    kept = list((cache / "compiled").iterdir())
    assert len(kept) == 3
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept)
    caplog.clear()
    plain, fast = pair()
    assert "preparing" not in caplog.text
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(fast.encode(image), plain.encode(image), atol=1e-4)
    embedding = plain.encode(image)
    for multimask in (False, True):
        logits = fast.decode(embedding, boxes=boxes(3), multimask=multimask)[0]
        assert torch.allclose(
            logits, plain.decode(embedding, boxes=boxes(3), multimask=multimask)[0], atol=1e-4
        )


@pytest.mark.parametrize("damage", [b"", b"other", None], ids=["empty", "other", "one bit"])
def test_a_damaged_compiled_model_is_made_again(damage, pair, cache):
    pair()
    for path in (cache / "compiled").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage is None else damage)
    plain, fast = pair()
    image = torch.rand(1, 3, 64, 64)
    assert torch.allclose(fast.encode(image), plain.encode(image), atol=1e-4)


@pytest.mark.usefixtures("warm")
def test_other_weights_are_not_mistaken_for_the_compiled_ones(pair, small_sam):
    pair()
    other = small_sam()
    with torch.no_grad():
        other.image_encoder.neck[2].weight.mul_(2)
        expected = other.image_encoder(torch.ones(1, 3, 64, 64))
    other.accelerate()
    assert torch.allclose(other.encode(torch.ones(1, 3, 64, 64)), expected, atol=1e-4)


@pytest.mark.usefixtures("warm")
def test_acceleration_can_be_switched_off(tmp_path, small, small_sam):
    torch.save(small_sam().state_dict(), tmp_path / "weights.pth")
    assert load_sam(small(), weights=tmp_path / "weights.pth", accelerate=False)._compiled == {}
    assert load_sam(small(), weights=tmp_path / "weights.pth")._compiled
