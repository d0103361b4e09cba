import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention

from medsa.sam.attention import FoldedAttention


def both(size):
    """Stock and folded attention with the same random weights, in double precision."""
    torch.manual_seed(0)
    stock = Attention(16, num_heads=2, use_rel_pos=True, input_size=(size, size)).double()
    torch.nn.init.normal_(stock.rel_pos_h)
    torch.nn.init.normal_(stock.rel_pos_w)
    folded = FoldedAttention(16, num_heads=2, use_rel_pos=True, input_size=(size, size)).double()
    folded.load_state_dict(stock.state_dict())
    return stock, folded


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(2, 8))
def test_folded_attention_is_segment_anythings_on_any_grid(batch, height, width, trained_size):
    stock, folded = both(trained_size)
    x = torch.randn(batch, height, width, 16, dtype=torch.float64)
    assert torch.allclose(folded(x), stock(x), atol=1e-10)


def test_folded_attention_has_the_same_gradients():
    stock, folded = both(4)
    x = torch.randn(2, 4, 4, 16, dtype=torch.float64)
    for attention in (stock, folded):
        attention(x).square().sum().backward()
    for value, expected in zip(folded.parameters(), stock.parameters(), strict=True):
        assert torch.allclose(value.grad, expected.grad, atol=1e-8)


@pytest.mark.parametrize("image_size", [48, 64])
def test_the_vit_encoder_equals_segment_anythings_own(image_size, small, small_sam):
    sam, architecture = small_sam("vit", image_size), small("vit").architecture
    original = ImageEncoderViT(
        img_size=image_size,
        embed_dim=architecture.width,
        depth=architecture.depth,
        num_heads=architecture.heads,
        out_chans=32,
        norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        use_rel_pos=True,
        window_size=architecture.window,
        global_attn_indexes=architecture.global_blocks,
    )
    original.load_state_dict(sam.image_encoder.state_dict())
    image = torch.rand(2, 3, image_size, image_size)
    assert torch.allclose(sam.encode(image), original.eval()(image), atol=1e-4)
