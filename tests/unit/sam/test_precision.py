import pytest
import torch

from medsa.errors import ConfigurationError
from medsa.sam import load_sam, precision

BF16_CPU = pytest.mark.skipif(
    not (torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16")),
    reason="this CPU has no instructions for bfloat16",
)


@pytest.fixture
def auto(monkeypatch):
    monkeypatch.setenv("MEDSA_PRECISION", "auto")


@pytest.mark.parametrize(
    ("known", "fast"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), ({}, False)],
)
@pytest.mark.usefixtures("auto")
def test_a_cpu_computes_in_bfloat16_if_it_has_instructions_for_it(known, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert precision.is_fast("cpu") is fast
    with precision.autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") is fast
    with precision.autocast(torch.device("cpu"), enabled=False):
        assert not torch.is_autocast_enabled("cpu")
    monkeypatch.setenv("MEDSA_PRECISION", "full")
    assert not precision.is_fast("cpu")


@pytest.mark.usefixtures("auto")
def test_other_devices_and_versions_of_torch_that_cannot_tell_compute_in_float32(monkeypatch):
    assert not precision.is_fast("mps")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not precision.is_fast("cpu")


def test_a_precision_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("MEDSA_PRECISION", "half")
    with pytest.raises(ConfigurationError, match="auto or full, not 'half'"):
        precision.is_fast("cpu")


@BF16_CPU
@pytest.mark.usefixtures("auto")
def test_masks_of_a_bfloat16_encoder_are_nearly_those_of_float32(lite_medsam, ct_image):
    fast = load_sam("lite_medsam")
    found, expected = fast.encode(ct_image), lite_medsam.encode(ct_image)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    assert (found - expected).abs().mean() < 0.1 * expected.abs().mean()
    asked = torch.tensor([[60.0, 40.0, 190.0, 200.0], [100.0, 90.0, 150.0, 130.0]])
    mask, other = (lite_medsam.decode(value, boxes=asked)[0] > 0 for value in (found, expected))
    assert (mask & other).sum() / (mask | other).sum() > 0.95  # boxes around nothing in particular


@BF16_CPU
def test_each_precision_is_compiled_and_kept_for_itself(small_sam, cache, monkeypatch):
    image, found = torch.rand(1, 3, 64, 64), []
    for wanted in ("full", "auto", "full"):
        monkeypatch.setenv("MEDSA_PRECISION", wanted)
        sam = small_sam("vit")
        sam.accelerate()
        found.append(sam.encode(image))
    assert len(list((cache / "compiled").iterdir())) == 4  # two encoders, two decoders
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
