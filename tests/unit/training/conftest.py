"""Adapter versions without a model behind them, and tables of made-up figures."""

import pytest
import torch
from safetensors.torch import save_file

from medsa.adapters.method import read_method
from medsa.adapters.state import Card


@pytest.fixture
def candidate(tmp_path):
    """Makes a folder with an adapter's two files, as training leaves it."""

    def make(name="candidate", **card):
        folder = tmp_path / name
        folder.mkdir()
        save_file({"x": torch.full((4,), float(len(name)))}, folder / "adapter.safetensors")
        described = Card(
            method=read_method("decoder_only"), backbone="small", backbone_digest="0", image_size=48, **card
        )
        (folder / "card.json").write_text(described.model_dump_json())
        return folder

    return make
