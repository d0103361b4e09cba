"""Those that take no prompt, on the objects that the others are asked for; and the U-Net as a version."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.training.test_train import CASES, PLAIN

from medsa.adapters.inject import adapt
from medsa.adapters.method import MaskHead, read_method
from medsa.adapters.state import newest_promptless, read_card
from medsa.errors import AdapterError, CancelledError
from medsa.evaluation.asking import Protocol
from medsa.evaluation.evaluate import Wanted, summary
from medsa.evaluation.unasked import evaluate_unasked
from medsa.segmenter.classes import PromptlessSam, classify_volume
from medsa.training.classes import promptless, train_classes
from medsa.training.length import Length
from medsa.training.train import Request

__all__ = ["one_thread"]


def test_volumes_are_measured_whole_case_by_case_and_gone_on_with(tmp_path: Path) -> None:
    method = read_method("unet").model_copy(update={"head": MaskHead(kind="unet", classes=3)})
    unet = PromptlessSam(adapt(small_sam("tiny_vit"), method), ("near", "far"))
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
    wanted = Request("unet", {1: "near", 2: "far"}, Length(steps=15), settings)
    done = train_classes(sam, CASES[:3], [], tmp_path, wanted)
    known = promptless(sam, done.candidate)
    volume, truth, _ = CASES[3].read()
    answer = classify_volume(known, volume)
    assert known.labels == ("near", "far")
    assert ((answer.mask == 1) & (truth == 1)).sum() > 0.5 * (truth == 1).sum()
    assert np.array_equal(answer.mask, classify_volume(promptless(sam, done.candidate), volume).mask)
    assert newest_promptless(tmp_path) == done.candidate  # what medsa_auto serves
    counts = known.model.counts()
    assert counts["total"] == counts["trained"] == counts["parts"]["mask_head"]
    assert read_card(done.candidate).method.head.classes == 3
    assert known.model.adapter_digest
    (done.candidate / "adapter.safetensors").write_bytes(b"nonsense")
    with pytest.raises(AdapterError, match="cannot be read"):
        promptless(sam, done.candidate)


def test_the_seed_says_what_a_unet_begins_with(tmp_path: Path) -> None:
    sam, wanted = small_sam("tiny_vit"), Request("unet", {1: "near"}, Length(steps=1), PLAIN)
    made = [
        train_classes(sam, CASES[:1], [], tmp_path / name, replace(wanted, seed=seed)).candidate
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    ]
    digests = [promptless(sam, candidate).model.adapter_digest for candidate in made]
    assert digests[0] == digests[1] != digests[2]
