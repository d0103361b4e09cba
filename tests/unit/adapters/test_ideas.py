"""Each idea of the papers, as mathematics: checked against plain loops and against its own symmetries."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from medsa.adapters.bottleneck import Adapter
from medsa.adapters.factor_tuning import FactorTuning, LoRA, TunedQKV
from medsa.adapters.hyper_prompt import CONDITIONING, HyperPromptAdapter
from medsa.adapters.space_depth import depth_attention
from medsa.adapters.upsampling import MultiScaleFusion, ProgressiveUpsampling
from medsa.adapters.volumetric import VolumetricAdapter


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_a_fresh_adapter_adds_exactly_nothing():
    assert not Adapter(8, 2)(torch.randn(3, 8)).any()
    for conditioned in CONDITIONING.values():
        assert not conditioned(8, 2, 8)(torch.randn(2, 5, 8), torch.randn(2, 3, 8)).any()
    x = torch.randn(4, 3, 3, 8)
    assert torch.equal(VolumetricAdapter(8, 2)(x, depth=2), x)


def test_hyper_prompting_is_equations_1_and_2_written_as_a_plain_loop():
    adapter = randomise(HyperPromptAdapter(length=12, width=4, prompt_length=6))
    x, prompts = torch.randn(3, 5, 12), torch.randn(3, 2, 6)
    expected = torch.empty_like(x)
    for image in range(3):
        e_prompt = torch.stack([adapter.reduce(token) for token in prompts[image]]).mean(0)
        for token in range(5):
            e = adapter.down(x[image, token])
            for make, norm in zip(adapter.generate, adapter.norms, strict=True):
                w = make(e_prompt).reshape(4, 4)
                product = torch.stack([sum(e[i] * w[i, o] for i in range(4)) for o in range(4)])
                centred = product - product.mean()
                e = (centred / torch.sqrt((centred**2).mean() + norm.eps) * norm.weight + norm.bias).clamp(
                    min=0
                )
            expected[image, token] = adapter.up(e)
    torch.testing.assert_close(adapter(x, prompts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["hyper", "add", "concat"])
def test_a_conditioned_adapter_hears_its_own_images_prompt_only(way):
    adapter = randomise(CONDITIONING[way](12, 4, 6))
    x, prompts = torch.randn(1, 5, 12).expand(3, -1, -1), torch.randn(3, 2, 6)
    out = adapter(x, prompts)
    assert not torch.allclose(out[0], out[1])
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(adapter(x[order], prompts[order]), out[order])
    torch.testing.assert_close(adapter(x, prompts.flip(1)), out)
    assert adapter(x, prompts[:, :0]).isfinite().all()


def test_the_ablation_without_conditioning_is_deaf():
    adapter = randomise(CONDITIONING["none"](12, 4, 6))
    x = torch.randn(1, 5, 12)
    assert torch.equal(adapter(x, torch.randn(1, 2, 6)), adapter(x, torch.randn(1, 4, 6)))


def test_depth_attention_joins_the_same_position_of_all_slices_of_one_slab():
    seen = []

    def attention(sequences):
        seen.append(sequences)
        return sequences.flip(1)

    slabs, depth, height, width, length = 2, 3, 4, 5, 6
    x = torch.randn(slabs, depth, height, width, length)
    out = depth_attention(attention, x.flatten(0, 1), depth)
    assert seen[0].shape == (slabs * height * width, depth, 1, length)
    assert torch.equal(seen[0][height * width + 2 * width + 3, :, 0], x[1, :, 2, 3])
    assert torch.equal(out.view_as(x), x.flip(1))


@pytest.mark.parametrize("kind", [FactorTuning, LoRA])
def test_increments_start_at_zero_and_merged_equals_unmerged(kind):
    base = nn.Linear(16, 48)
    frozen = base.weight.detach().clone()
    tuning = kind(length=16, rank=4, blocks=2, scale=0.5)
    tuned = TunedQKV(base, tuning, block=1)
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(tuned(x), base(x), rtol=0, atol=0)
    randomise(tuning)
    unmerged = tuned(x)
    assert not torch.allclose(unmerged, base(x))
    torch.testing.assert_close(unmerged[..., 16:32], base(x)[..., 16:32])
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), unmerged, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tuned(x), F.linear(x, tuned.merged(), base.bias), rtol=0, atol=0)
    assert torch.equal(base.weight, frozen)


def test_factor_tuning_shares_u_and_v_among_the_blocks():
    tuning = FactorTuning(length=8, rank=2, blocks=5)
    assert sum(p.numel() for p in tuning.parameters()) == 2 * 8 * 2 + 2 * 5 * 2 * 2


def test_the_volumetric_adapter_mixes_neighbouring_slices_of_a_slab_and_nothing_else():
    adapter = randomise(VolumetricAdapter(6, 3))
    x = torch.randn(2, 5, 4, 4, 6)
    changed = x.clone()
    changed[0, 2, 1, 1] += torch.randn(6)
    moved = (adapter(changed.flatten(0, 1), 5) - adapter(x.flatten(0, 1), 5)).view_as(x).abs().sum(-1) > 1e-6
    assert moved[0, 1:4, 1, 1].all()
    assert moved.sum() == 3


@pytest.mark.parametrize("head", [ProgressiveUpsampling, MultiScaleFusion])
@pytest.mark.parametrize("steps", [2, 4])
def test_a_mask_head_reaches_the_inputs_resolution(head, steps):
    module = head(32, steps)
    out = module(torch.randn(2, 32, 4, 4), torch.randn(2, 3, 4 << steps, 4 << steps))
    assert out.shape == (2, module.out_channels, 4 << steps, 4 << steps)


def test_the_bottleneck_is_down_relu_up():
    adapter = randomise(Adapter(8, 2))
    x = torch.randn(3, 8)
    expected = F.relu(x @ adapter.down.weight.T + adapter.down.bias) @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(x), expected)
