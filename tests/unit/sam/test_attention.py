import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention

from medsa.sam.attention import SHORT, FoldedAttention, attend


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


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_short_sequences_learn_in_bfloat16_without_the_fused_kernel(biased, scale, monkeypatch):
    torch.manual_seed(0)
    values = [torch.randn(3, 2, 9, 8) for _ in "qkv"] + ([torch.randn(1, 2, 9, 9)] if biased else [])
    fused, found = torch.nn.functional.scaled_dot_product_attention, {}
    for dtype in (torch.float64, torch.bfloat16):
        leaves = [value.to(dtype).requires_grad_() for value in values]
        with monkeypatch.context() as patch:
            if dtype == torch.bfloat16:
                patch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
            out = attend(*leaves, scale=scale)
        out.square().sum().backward()
        found[dtype] = [out, *(leaf.grad for leaf in leaves)]
    for value, expected in zip(found[torch.bfloat16], found[torch.float64], strict=True):
        assert (value.double() - expected).norm() < 0.03 * expected.norm()
    with torch.no_grad():
        rounded = [value.bfloat16() for value in values]
        bias = rounded[3] if biased else None
        assert torch.equal(attend(*rounded, scale=scale), fused(*rounded[:3], attn_mask=bias, scale=scale))


def test_long_sequences_keep_no_weights_of_all_pairs():
    kept = []
    for tokens in (SHORT, SHORT + 1):
        q = torch.randn(1, 1, tokens, 8, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            attend(q, q, q)
        assert (max(kept) >= tokens**2) is (tokens == SHORT)
        kept.clear()
