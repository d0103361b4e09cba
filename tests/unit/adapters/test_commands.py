"""`medsa methods`, `medsa params`, and `medsa segment` with a method or an adapter."""

import json

import nibabel
import numpy as np
import pytest
import torch

from medsa.adapters.adapter_set import PLACES
from medsa.adapters.inject import adapt
from medsa.adapters.method import read_methods
from medsa.adapters.state import save_adapter, starter_adapter
from medsa.cli import main
from medsa.sam import load_sam


def run(*words):
    return main([str(word) for word in words])


def counted(capsys, backbone, method):
    assert run("params", "--backbone", backbone, "--method", method, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_every_place_is_counted_and_together_they_are_all_that_is_trained(capsys):
    for method in read_methods():
        counts = counted(capsys, "lite_medsam", method.name)
        assert set(PLACES) <= set(counts["parts"])
        assert sum(counts["parts"].values()) == counts["trained"] <= counts["total"]
        assert counts["trained_percent"] == pytest.approx(100 * counts["trained"] / counts["total"])


def test_the_papers_sizes_on_vit_h_come_without_weights(capsys):
    counts = counted(capsys, "vit_h", "med_sa_2d")
    places = ("encoder_attention", "encoder_mlp", "encoder_depth", "encoder_global")
    assert sum(counts["parts"][place] for place in places) == pytest.approx(13.2e6, rel=0.05)
    assert counts["trained_percent"] == pytest.approx(2, abs=0.2)
    counts = counted(capsys, "vit_h", "gl_med_sa")
    assert counts["trained"] == pytest.approx(19.8e6, rel=0.05)
    assert counts["parts"]["encoder_global"] == counts["parts"]["encoder_mlp"] > 6e6


def test_the_table_names_every_method_with_its_slab_and_prompts(capsys):
    assert run("methods", "--backbone", "vit_b") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", *(method.name for method in read_methods())]
    found = {line.split()[0]: line for line in lines}
    assert "none: all classes at once" in found["ma_sam"]
    assert "5 slices" in found["med_sa"]
    assert "1 slice " in found["med_sa_2d"]
    assert "100.00 %" in found["full"]


def test_params_for_people_shows_what_the_json_holds(capsys):
    counts = counted(capsys, "vit_b", "ma_sam")
    assert run("params", "--backbone", "vit_b", "--method", "ma_sam") == 0
    text = capsys.readouterr().out
    for name, number in counts["parts"].items():
        assert f"{number:,}" in next(line for line in text.splitlines() if line.strip().startswith(name))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("params", "--method", "med_sb"), "unknown method 'med_sb'; choose one of: decoder_only"),
        (("params", "--method", "med_sa", "--backbone", "vit_x"), "unknown backbone 'vit_x'"),
        (("methods", "--backbone", "vit_x"), "unknown backbone 'vit_x'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(words, said, capsys):
    assert run(*words) == 2
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A bright square of one slice."""
    voxels = np.zeros((64, 48, 1), np.int16)
    voxels[20:40, 15:35] = 200
    path = tmp_path_factory.mktemp("image") / "square.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


def segment(image, out, *words):
    return run("segment", image, "--box", "18,13,42,37", "-o", out, *words)


def mask(path):
    return np.asarray(nibabel.load(path).dataobj)


def test_a_method_without_an_adapter_is_the_backbone_and_says_so(image, tmp_path, capsys):
    assert segment(image, tmp_path / "base.nii.gz", "--adapter", "none") == 0
    assert "has learnt nothing" not in capsys.readouterr().err
    assert segment(image, tmp_path / "fresh.nii.gz", "--method", "med_sa_2d") == 0
    assert "med_sa_2d has learnt nothing without --adapter" in capsys.readouterr().err
    assert (mask(tmp_path / "base.nii.gz") == mask(tmp_path / "fresh.nii.gz")).all()


def test_the_starter_adapter_answers_unless_something_else_is_asked_for(image, tmp_path, capsys):
    told = []
    for words in ((), ("--adapter", starter_adapter("lite_medsam")), ("--adapter", "none")):
        assert segment(image, tmp_path / "mask.nii.gz", *words) == 0
        told.append(capsys.readouterr().out.splitlines()[0])
    assert told[0] == told[1] != told[2]


def test_an_adapter_answers_on_the_command_line(image, tmp_path, capsys):
    model = adapt(load_sam("lite_medsam", accelerate=False), "decoder_only")
    with torch.no_grad():
        model.adapters.own["mask_decoder"].iou_prediction_head.layers[-1].bias.fill_(3)
    save_adapter(model, tmp_path / "site")
    out = tmp_path / "mask.nii.gz"
    assert segment(image, out, "--adapter", tmp_path / "site", "--method", "decoder_only") == 0
    told = capsys.readouterr()
    assert "predicted IoU 3" in told.out or "predicted IoU 4" in told.out
    assert "learnt nothing" not in told.err
    for words, said in (
        (("--adapter", tmp_path / "site", "--method", "lora"), "is of the method decoder_only, not lora"),
        (("--adapter", tmp_path), "is no adapter version: it has no card.json"),
        (("--method", "ma_sam"), "takes no clicks and no boxes"),
    ):
        assert segment(image, out, *words) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "site" / "adapter.safetensors").write_bytes(b"damaged")
    assert segment(image, out, "--adapter", tmp_path / "site") == 2
    assert "adapter.safetensors of the adapter site cannot be read" in capsys.readouterr().err
