"""Those that take no prompt, on the objects that the others are asked for; and the U-Net's own file."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.training.test_train import CASES, PLAIN

from medsa.comparison.unet import fresh_unet, load_unet, train_unet
from medsa.errors import CancelledError, WeightsError
from medsa.evaluation.asking import Protocol
from medsa.evaluation.evaluate import Wanted, summary
from medsa.evaluation.unasked import evaluate_unasked
from medsa.segmenter.classes import classify_volume
from medsa.training.length import Length
from medsa.training.train import Request

__all__ = ["one_thread"]


def test_volumes_are_measured_whole_case_by_case_and_gone_on_with(tmp_path: Path) -> None:
    unet = fresh_unet(small_sam("tiny_vit"), ("near", "far"), 0)
    wanted = Wanted(Protocol(), {}, slices=None, labels={1: "near", 2: "elsewhere"})
    whole = evaluate_unasked(unet, CASES[:2], wanted, tmp_path / "whole")
    assert [(entry["case"], entry["label"], entry["slice"]) for entry in whole] == [
        (0, "near", None), (0, "elsewhere", None), (1, "near", None), (1, "elsewhere", None),
    ]  # fmt: skip
    assert summary(whole)["none"]["dice"]["n"] == 4
    assert [entry["prompts"]["none"]["dice"] for entry in whole if entry["label"] == "elsewhere"] == [0, 0]

    def stop(done: int, _most: int) -> None:
        if done == 1:
            raise CancelledError("stopped")

    with pytest.raises(CancelledError):
        evaluate_unasked(unet, CASES[:2], wanted, tmp_path / "halved", stop)
    again = evaluate_unasked(unet, CASES[:2], wanted, tmp_path / "halved")
    assert [entry["prompts"] for entry in again] == [entry["prompts"] for entry in whole]


def test_a_unet_learns_and_is_read_again_as_it_was(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    settings = PLAIN.model_copy(update={"adapter_rate": 1e-2, "ema": 0.5, "batch": 4})
    wanted = Request(None, {1: "near", 2: "far"}, Length(steps=15), settings)
    done = train_unet(sam, CASES[:3], [], tmp_path, wanted)
    known = load_unet(sam, done.candidate)
    volume, truth, _ = CASES[3].read()
    answer = classify_volume(known, volume)
    assert known.labels == ("near", "far")
    assert ((answer.mask == 1) & (truth == 1)).sum() > 0.5 * (truth == 1).sum()
    assert np.array_equal(answer.mask, classify_volume(load_unet(sam, done.candidate), volume).mask)
    (done.candidate / "unet.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_unet(sam, done.candidate)
