"""Small models of the real architectures, a cache folder of one's own, the embedded backbone loaded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.data import get_testdata_file

from medsa.sam import Backbone, Sam, build_sam, load_sam

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit": {"kind": "vit", "width": 32, "depth": 3, "heads": 2, "global_blocks": [1], "window": 3},
    "tiny_vit": {
        "kind": "tiny_vit",
        "patch": 4,
        "widths": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "heads": [1, 2, 2, 2],
        "windows": [3, 3, 3, 3],
    },
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def exact(full_precision: None) -> None:
    """Compiled and plain models are compared to the last digit here; `test_precision` asks for less."""


@pytest.fixture
def small() -> Callable[..., Backbone]:
    """Makes a small backbone of a real architecture: `small("vit", sha256=...)`, fields of its weights."""

    def make(kind: str = "tiny_vit", **weights: Any) -> Backbone:
        return Backbone.model_validate(
            {
                "name": f"small_{kind}",
                "title": "for tests",
                "architecture": ARCHITECTURES[kind],
                "decoder": {"width": 32, "heads": 2, "mlp": 64},
                "image_size": 64,
                "trained_prompts": ["box"],
                "parameters": 1,
                "licence": "Apache-2.0",
                "source": "tests",
                "weights": {"file": f"small_{kind}.pth", **weights},
            }
        )

    return make


@pytest.fixture
def small_sam(small: Callable[..., Backbone]) -> Callable[..., Sam]:
    """Makes a small model with random weights in which nothing is left at zero."""

    def make(kind: str = "tiny_vit", image_size: int | None = None) -> Sam:
        torch.manual_seed(0)
        sam = build_sam(small(kind), image_size=image_size)
        with torch.no_grad():
            for parameter in sam.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return sam

    return make


@pytest.fixture(scope="session")
def ct_image() -> torch.Tensor:
    """A real CT slice as LiteMedSAM eats it, (1, 3, 256, 256) in [0, 1]."""
    pixels = dcmread(get_testdata_file("CT_small.dcm")).pixel_array.astype(np.float32)
    scaled = (pixels - pixels.min()) / (pixels.max() - pixels.min())
    image = torch.from_numpy(scaled).expand(1, 3, *scaled.shape)
    return torch.nn.functional.interpolate(image, (256, 256), mode="bilinear").contiguous()


@pytest.fixture(scope="session")
def lite_medsam(tmp_path_factory: pytest.TempPathFactory) -> Sam:
    """The embedded default, accelerated, in full precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MEDSA_PRECISION", "full")
        return load_sam("lite_medsam")
