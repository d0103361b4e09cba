"""Small models of the real architectures with random weights."""

import pytest
import torch

from medsa.sam import Backbone, build_sam

SMALL = {
    "vit": {"kind": "vit", "width": 32, "depth": 3, "heads": 2, "global_blocks": [2], "window": 3},
    "tiny_vit": {
        "kind": "tiny_vit",
        "patch": 1,
        "widths": [8, 16, 16, 32],
        "depths": [1, 1, 2, 1],
        "heads": [1, 2, 2, 2],
        "windows": [7, 7, 14, 7],
    },
}


@pytest.fixture(autouse=True)
def one_thread():
    """These models are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_sam(kind, seed=0, image_size=None):
    torch.manual_seed(seed)
    backbone = Backbone(
        name=f"small_{kind}",
        title="small",
        architecture=SMALL[kind],
        decoder={"width": 32, "heads": 2, "mlp": 64},
        image_size=48,
        trained_prompts=("point", "box"),
        parameters=1,
        licence="Apache-2.0",
        source="random",
        weights={"file": "none.pt"},
    )
    sam = build_sam(backbone, image_size=image_size)
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name or "pos_embed" in name or "attention_biases" in name:
            parameter.data.normal_(std=0.5)
    return sam


@pytest.fixture(params=list(SMALL))
def sam(request):
    return small_sam(request.param)
