"""What the runtime's tests share."""

import pytest
import torch

from medsa.sam import build_sam
from medsa.segmenter import Segmenter


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """A small model with random weights."""
    torch.manual_seed(0)
    return Segmenter(build_sam("lite_medsam", image_size=64))
