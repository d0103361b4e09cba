import copy

import pytest
import torch
from segment_anything.modeling import Sam as OriginalSam
from segment_anything.modeling.image_encoder import get_rel_pos

from medsa.errors import ConfigurationError
from medsa.sam import load_sam

KINDS = ["vit", "tiny_vit"]


@pytest.fixture
def saved(tmp_path, small, small_sam):
    """Saves the small model's weights; gives backbone and path."""

    def save(kind):
        torch.save(small_sam(kind).state_dict(), tmp_path / "weights.pth")
        return small(kind), tmp_path / "weights.pth"

    return save


def boxes(count, side=64):
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(count)) * side
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_model_is_frozen_in_eval_mode_and_equal_to_what_was_saved(kind, saved, small_sam):
    backbone, path = saved(kind)
    sam = load_sam(backbone, weights=path, accelerate=False)
    assert not sam.training
    assert not any(parameter.requires_grad for parameter in sam.parameters())
    assert not any(tensor.is_meta for tensor in (*sam.parameters(), *sam.buffers()))
    image, original = torch.rand(1, 3, 64, 64), small_sam(kind)
    assert torch.equal(sam.encode(image), original.encode(image))
    assert torch.equal(
        sam.decode(sam.encode(image), boxes=boxes(2))[0],
        original.decode(original.encode(image), boxes=boxes(2))[0],
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_size", [32, 48, 64, 112])
def test_any_input_size_on_the_16_grid_can_be_loaded_and_used(kind, image_size, saved):
    backbone, path = saved(kind)
    sam = load_sam(backbone, weights=path, image_size=image_size, accelerate=False)
    embedding = sam.encode(torch.rand(2, 3, image_size, image_size))
    side = sam.embedding_size
    assert side == image_size // 16
    assert embedding.shape == (2, 32, side, side)
    logits, scores = sam.decode(embedding[:1], boxes=boxes(3, image_size))
    assert logits.shape == (3, 1, 4 * side, 4 * side)
    assert scores.shape == (3, 1)


def test_an_input_size_off_the_16_grid_is_refused(saved):
    backbone, path = saved("vit")
    with pytest.raises(ConfigurationError, match="multiple of 16"):
        load_sam(backbone, weights=path, image_size=60, accelerate=False)


def test_relative_positions_are_interpolated_as_segment_anything_does_it(saved, small_sam):
    backbone, path = saved("vit")
    original = small_sam("vit").image_encoder.blocks[1].attn
    for image_size in (32, 112):
        block = (
            load_sam(backbone, weights=path, image_size=image_size, accelerate=False)
            .image_encoder.blocks[1]
            .attn
        )
        side = image_size // 16
        expected = get_rel_pos(side, side, original.rel_pos_h)
        assert torch.allclose(get_rel_pos(side, side, block.rel_pos_h), expected, atol=1e-6)


def test_interpolated_positions_keep_a_constant_and_a_gradient(saved, tmp_path):
    backbone, path = saved("vit")
    tensors = torch.load(path, weights_only=True)
    ramp = torch.arange(4.0)[:, None].expand(4, 4)
    tensors["image_encoder.pos_embed"] = torch.stack([torch.ones(4, 4), ramp], -1).repeat(1, 1, 16)[None]
    torch.save(tensors, path)
    positions = load_sam(backbone, weights=path, image_size=128, accelerate=False).image_encoder.pos_embed[0]
    assert positions.shape == (8, 8, 32)
    assert torch.allclose(positions[..., 0], torch.ones(8, 8), atol=1e-5)
    assert (positions[1:, :, 1] > positions[:-1, :, 1]).all()


@pytest.mark.parametrize("prompts", ["points", "boxes", "both", "masks", "all"])
@pytest.mark.parametrize("multimask", [False, True])
def test_decoding_is_segment_anythings_own(prompts, multimask, small_sam):
    sam = small_sam("vit")
    original = OriginalSam(sam.image_encoder, sam.prompt_encoder, sam.mask_decoder, [0.0] * 3, [1.0] * 3)
    image = torch.rand(1, 3, 64, 64)
    record = {"image": image[0], "original_size": (64, 64)}
    asked = {}
    if prompts in ("points", "both", "all"):
        asked |= {"points": boxes(3)[:, :2].unsqueeze(1), "point_labels": torch.tensor([[1], [0], [1]])}
        record |= {"point_coords": asked["points"], "point_labels": asked["point_labels"]}
    if prompts in ("boxes", "both", "all"):
        asked["boxes"] = record["boxes"] = boxes(3)
    if prompts in ("masks", "all"):
        asked["masks"] = record["mask_inputs"] = torch.randn(3, 1, 16, 16)
    (expected,) = original([record], multimask)
    logits, scores = sam.decode(sam.encode(image), multimask=multimask, **asked)
    assert torch.allclose(logits, expected["low_res_logits"], atol=1e-5)
    assert torch.allclose(scores, expected["iou_predictions"], atol=1e-5)


def test_prompts_of_a_batch_do_not_see_each_other(small_sam):
    sam = small_sam()
    embedding = sam.encode(torch.rand(1, 3, 64, 64))
    together, _ = sam.decode(embedding, boxes=boxes(5))
    alone = torch.cat([sam.decode(embedding, boxes=box[None])[0] for box in boxes(5)])
    assert torch.allclose(together, alone, atol=1e-4)


def test_one_mask_serves_all_prompts_of_a_batch(small_sam):
    sam = small_sam()
    embedding, mask = sam.encode(torch.rand(1, 3, 64, 64)), torch.randn(1, 1, 16, 16)
    shared, _ = sam.decode(embedding, boxes=boxes(4), masks=mask)
    each, _ = sam.decode(embedding, boxes=boxes(4), masks=mask.expand(4, -1, -1, -1))
    assert torch.allclose(shared, each, atol=1e-5)


def test_a_point_that_is_none_changes_nothing_but_padding(small_sam):
    sam = small_sam()
    embedding = sam.encode(torch.rand(1, 3, 64, 64))
    point, label = torch.tensor([[[20.0, 30.0]]]), torch.tensor([[1.0]])
    padded = torch.cat([point, torch.tensor([[[1.0, 2.0]]])], dim=1)
    elsewhere = torch.cat([point, torch.tensor([[[50.0, 60.0]]])], dim=1)
    labels = torch.tensor([[1.0, -1.0]])
    assert torch.allclose(
        sam.decode(embedding, padded, labels)[0], sam.decode(embedding, elsewhere, labels)[0], atol=1e-5
    )
    assert not torch.allclose(
        sam.decode(embedding, point, label)[0], sam.decode(embedding, point, 1 - label)[0]
    )


def test_what_a_frozen_model_computes_can_be_trained_on(small_sam):
    sam = small_sam()
    embedding = sam.encode(torch.rand(1, 3, 64, 64))
    sam.mask_decoder.requires_grad_(True)
    logits, _ = sam.decode(embedding, boxes=boxes(2))
    logits.mean().backward()
    assert sam.mask_decoder.iou_token.weight.grad is not None
    assert sam.image_encoder.neck[0].weight.grad is None


def test_gradients_reach_the_encoders_input_when_asked_for(small_sam):
    sam, image = small_sam(), torch.rand(1, 3, 64, 64, requires_grad=True)
    sam.encode(image).mean().backward()
    assert image.grad is not None
    with torch.no_grad():
        assert not sam.encode(image).requires_grad


def test_a_copy_computes_the_same(small_sam):
    sam, image = small_sam(), torch.rand(1, 3, 64, 64)
    assert torch.equal(copy.deepcopy(sam).encode(image), sam.encode(image))
