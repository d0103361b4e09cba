"""Drawn studies, a small model that answers, and the command that asks it."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medsa.cli import main
from medsa.sam import build_sam
from medsa.segmenter import Segmenter

SHAPE = (48, 40, 6)
WORDS = ("--prompts", "1,3,box,box0.75,noc", "--slices", "1", "--seeds", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies of a bright block (1) and a dark one (2)."""
    folder = tmp_path_factory.mktemp("set")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for number in range(2):
        mask = np.zeros(SHAPE, np.uint8)
        mask[8 + number : 20, 8:20, 1:5] = 1
        mask[28:40, 14:30, 2:5] = 2
        values = np.choose(mask, [80, 160, 20]) + np.random.default_rng(number).normal(0, 5, SHAPE)
        affine = np.diag([1.0, 1.0, 2.0, 1.0])
        nibabel.save(
            nibabel.Nifti1Image(values.astype(np.int16), affine), folder / f"images/doe{number}.nii.gz"
        )
        nibabel.save(nibabel.Nifti1Image(mask, affine), folder / f"labels/doe{number}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model with random weights answers."""

    def load(_args: object) -> Segmenter:
        torch.manual_seed(0)
        return Segmenter(build_sam("lite_medsam", image_size=64))

    monkeypatch.setattr("medsa.cli_segment.open_segmenter", load)


def run(data: Path, out: Path, *words: str) -> int:
    return main(["evaluate", str(data), "--json", str(out), *words])
