"""Adapted models compiled: the same masks, nothing compiled twice, a swap that is served before it is."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tests.unit.adapters.conftest import small_sam
from tests.unit.adapters.test_placement import BOX, LABELS, POINTS, images, randomise

from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.sam import load_sam, precision
from medsa.segmenter import ServedModels

UNLIKE = ("med_sa_2d", "med_sa_sd_concat", "msa", "gl_med_sa", "lora", "ma_sam_prompted", "full")
CASES = [("vit", "med_sa_2d"), *(("tiny_vit", name) for name in UNLIKE)]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch, full_precision):
    """A cache folder of these tests alone, kept among them."""
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path_factory.getbasetemp() / "compiled"))


def prompts(count, side):
    """Every kind of prompt, for `count` objects; masks of `side` pixels."""
    box, points, labels = (value[:1].expand(count, *value.shape[1:]) for value in (BOX, POINTS, LABELS))
    mask = torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(0))
    yield {"boxes": box}
    yield {"points": points, "point_labels": labels, "multimask": True}
    yield {"points": points[:, :1], "point_labels": labels[:, :1], "boxes": box}
    yield {"masks": mask}


@torch.no_grad()
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_compiled_method_answers_as_before(kind, name):
    sam = small_sam(kind)
    model = randomise(adapt(sam, name)).eval()
    picture = images(1)
    embedding = model.encode(picture)
    every = [asked for count in (1, 9) for asked in prompts(count, 4 * sam.embedding_size)]
    expected = [model.decode(embedding, **asked) for asked in every]
    model.accelerate()
    assert model.accelerated
    difference = (model.encode(picture) - embedding).abs().max()
    assert difference < 1e-3 * embedding.abs().max()
    answers = [model.decode(embedding, **asked) for asked in every]
    for ours, theirs in zip(answers, expected, strict=True):
        for value, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


@torch.no_grad()
def test_slabs_are_encoded_in_bfloat16_once_the_model_is_accelerated(monkeypatch):
    """They are not compiled: what makes them fast is torch's own arithmetic."""
    monkeypatch.setattr(precision, "is_fast", lambda _device: True)
    model = randomise(adapt(small_sam("tiny_vit"), "med_sa")).eval()
    slab = images(4)[None]
    exact = model.encode(slab)
    model.accelerate()
    fast = model.encode(slab)
    assert fast.dtype == torch.float32
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().mean() < 0.1 * exact.abs().mean()


@torch.no_grad()
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["", "sam", "med_sa_2d"])
def test_prompts_on_images_of_their_own_are_answered_together_as_one_by_one(name, compiled):
    """More of them than are decoded at a time."""
    sam = small_sam("tiny_vit")
    model = randomise(adapt(sam, name)).eval() if name else sam
    embeddings = model.encode(images(9))
    if compiled:
        sam.accelerate()
        model.accelerate()
    for asked in prompts(9, 4 * sam.embedding_size):
        together = model.decode(embeddings, **asked)
        for n in range(9):
            one = {key: value[n : n + 1] if key != "multimask" else value for key, value in asked.items()}
            for value, alone in zip(together, model.decode(embeddings[n : n + 1], **one), strict=True):
                torch.testing.assert_close(value[n : n + 1], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_only_what_differs_from_the_base_is_compiled():
    sam = small_sam("tiny_vit")
    sam.accelerate()
    for name, parts in (
        ("sam", set()),
        ("decoder_only", {"mask", "masks"}),
        ("gl_med_sa", {"encoder"}),
        ("med_sa_2d", {"encoder", "mask", "masks"}),
    ):
        model = adapt(sam, name).eval()
        model.accelerate()
        assert set(model._compiled) == parts
        assert model.accelerated
    base = sam.encode(images())
    assert torch.equal(adapt(sam, "decoder_only").encode(images()), base)


@torch.no_grad()
def test_what_is_learnt_after_compiling_counts():
    sam = small_sam("tiny_vit")
    model = randomise(adapt(sam, "med_sa_2d")).eval()
    model.accelerate()
    before = model.encode(images(1))
    for _, _, parameter in model.trained_parameters():
        parameter.mul_(0.5)
    after = model.encode(images(1))
    assert not torch.allclose(after, before, atol=1e-3)
    fresh = adapt(sam, "med_sa_2d").eval()
    fresh.adapters.load_state_dict(model.adapters.state_dict())
    assert torch.equal(after, fresh.encode(images(1)))


def test_gradients_flow_through_an_accelerated_adapted_model():
    model = randomise(adapt(small_sam("tiny_vit"), "med_sa_2d"))
    model.accelerate()
    model.decode(model.encode(images()), boxes=BOX)[0].mean().backward()
    assert all(parameter.grad is not None for _, _, parameter in model.trained_parameters())


@torch.no_grad()
def test_a_swap_is_served_at_once_and_compiled_beside_the_requests(tmp_path, monkeypatch):
    sam = small_sam("tiny_vit")
    sam.accelerate()
    save_adapter(randomise(adapt(sam, "med_sa_2d")), tmp_path / "new")
    go, began = threading.Event(), threading.Event()
    accelerate = type(adapt(sam, "sam")).accelerate

    def slowly(model):
        began.set()
        assert go.wait(30)
        accelerate(model)

    monkeypatch.setattr("medsa.adapters.inject.AdaptedSam.accelerate", slowly)
    models = ServedModels(sam, 64, tmp_path)
    assert models.serve(tmp_path / "new") == "new"
    model = models.segmenter()[1].sam
    assert began.wait(30)
    eager = model.encode(images(1))
    assert not model.accelerated
    [thread] = [thread for thread in threading.enumerate() if thread.name == "compile new"]
    assert not thread.daemon
    go.set()
    thread.join()
    assert model.accelerated
    torch.testing.assert_close(model.encode(images(1)), eager, rtol=1e-3, atol=1e-3)


SWAP_AND_END = """
import sys
from pathlib import Path
from conftest import small_sam
from medsa.segmenter import ServedModels

sam = small_sam("tiny_vit")
sam.accelerate()
models = ServedModels(sam, 64, Path(sys.argv[1]))
models.serve(Path(sys.argv[1]))
print(models.name, models.segmenter()[1].sam.accelerated)
"""


def test_a_process_ends_well_while_an_adapter_is_being_compiled(tmp_path):
    save_adapter(adapt(small_sam("tiny_vit"), "med_sa_2d"), tmp_path / "new")
    done = subprocess.run(
        [sys.executable, "-c", SWAP_AND_END, str(tmp_path / "new")],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "new False\n"


@pytest.fixture(scope="module")
def lite_medsam(tmp_path_factory):
    """The real backbone, compiled in full precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSA_CACHE", str(tmp_path_factory.getbasetemp() / "compiled"))
        patch.setenv("MEDSA_PRECISION", "full")
        return load_sam("lite_medsam", image_size=128)


def a_little(model, scale=0.02):
    """Adapters that have learnt a little, as adapters do."""
    generator = torch.Generator().manual_seed(0)
    for _, _, parameter in model.trained_parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["med_sa_2d", "lora"])
def test_masks_of_the_real_backbone_are_the_same_compiled(lite_medsam, name):
    model = a_little(adapt(lite_medsam, name), 0.02 if name == "med_sa_2d" else 0.002)
    picture = torch.zeros(1, 3, 128, 128)
    picture[:, :, 30:95, 40:100] = torch.rand(65, 60, generator=torch.Generator().manual_seed(0))
    asked = {"boxes": torch.tensor([[35.0, 25, 105, 100], [10, 10, 50, 120], [30, 30, 70, 70]])}
    eager = model.decode(model.encode(picture), **asked)
    assert not torch.allclose(eager[0], lite_medsam.decode(lite_medsam.encode(picture), **asked)[0], atol=0.1)
    model.accelerate()
    assert set(model._compiled) == {"encoder", "mask", "masks"}
    fast = model.decode(model.encode(picture), **asked)
    ours, theirs = fast[0] > 0, eager[0] > 0
    assert theirs.any()
    assert (ours & theirs).sum() / (ours | theirs).sum() >= 0.9999
    torch.testing.assert_close(fast[1], eager[1], rtol=1e-3, atol=1e-3)


def test_a_swap_of_a_real_adapter_takes_a_fraction_of_loading_its_backbone(lite_medsam, tmp_path):
    """No export on the way: it costs about what reading the file does."""
    save_adapter(a_little(adapt(lite_medsam, "med_sa_2d")), tmp_path / "new")
    models = ServedModels(load_sam("lite_medsam", accelerate=False, image_size=128), 64, tmp_path)
    started = time.perf_counter()
    models.serve(tmp_path / "new")
    swap = time.perf_counter() - started
    started = time.perf_counter()
    load_sam("lite_medsam", image_size=128)
    assert swap < time.perf_counter() - started
