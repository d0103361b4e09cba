"""From labelled cases to a version: what is in the folder, who is in the card, and what is refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.unit.adapters.conftest import one_thread, small_sam

from medsa.adapters.state import load_adapter, read_card
from medsa.data.volume import Volume
from medsa.errors import BadInputError, CancelledError, ConfigurationError
from medsa.evaluation import dice
from medsa.prompts import Prompt
from medsa.segmenter import Segmenter
from medsa.training.cases import Nameless
from medsa.training.classes import train_classes
from medsa.training.length import Length
from medsa.training.settings import Settings, rate_at, read_settings
from medsa.training.train import Request, train

__all__ = ["one_thread"]

PLAIN = Settings(name="test", title="", batch=2, epoch_items=4, validation_items=2, rate=1e-3)


@dataclass(frozen=True)
class Ball:
    """A drawn study with two labels."""

    id: str
    patient: str = ""

    def read(self) -> tuple[Volume, np.ndarray, Mapping[int, str]]:
        rng = np.random.default_rng(int(self.id))
        i, j, _ = np.mgrid[:40, :40, :3]
        mask = np.zeros((40, 40, 3), np.uint8, order="F")
        mask[(i - 14) ** 2 + (j - 14) ** 2 < rng.uniform(30, 70)] = 1
        mask[(i - 28) ** 2 + (j - 27) ** 2 < rng.uniform(30, 70)] = 2
        voxels = np.asfortranarray(mask * 60.0 + rng.normal(0, 5, mask.shape), np.float32)
        return Volume(voxels, np.eye(4), "MR"), mask, {1: "near", 2: "far"}


CASES = [Ball(str(n)) for n in range(4)]


def request(**changed: object) -> Request:
    return Request(**({"method": "decoder_only", "length": Length(epochs=1), "settings": PLAIN} | changed))


def test_a_run_leaves_a_version_with_its_provenance(tmp_path: Path) -> None:
    sam, said = small_sam("tiny_vit"), []
    done = train(
        sam, CASES[:3], CASES[3:], tmp_path / "run", request(labels={2: "far"}),
        told=lambda what, part: said.append((what, part)),
    )  # fmt: skip
    card = read_card(done.candidate)
    assert card.labels == ("far",)
    assert card.studies == {"training": ("0", "1", "2"), "validation": ("3",)}
    assert set(card.trained_prompts) == {"point", "box", "mask"}
    assert set(card.metrics) == {"before", "after"}
    assert set(card.metrics["after"]) == {"1 pt", "3 pts", "10 pts", "auc", "box", "background"}
    model = load_adapter(sam, done.candidate)
    assert model.method.name == "decoder_only"
    assert [what for what, part in said if part == 1.0] == ["reading", "training", "measuring"]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["batch"] == 2
    assert config["method"]["name"] == "decoder_only"


def test_the_same_seed_teaches_the_same(tmp_path: Path) -> None:
    """Also what begins at random: LoRA's first factor is nobody's but the seed's."""
    sam, found = small_sam("tiny_vit"), []
    for n, seed in enumerate((0, 0, 1)):
        wanted = request(method="lora", length=Length(steps=1), measured=0, seed=seed)
        done = train(sam, CASES[:2], (), tmp_path / str(n), wanted)
        found.append((done.candidate / "adapter.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_run_may_be_told_how_many_steps_to_make(tmp_path: Path) -> None:
    wanted = request(length=Length(steps=5), measured=0)
    done = train(small_sam("tiny_vit"), CASES[:2], CASES[3:], tmp_path, wanted)
    assert done.steps == 5
    assert Length(steps=5).split(0.4) == (Length(steps=2), Length(steps=3))


@pytest.mark.parametrize(("method", "learn"), [("decoder_only", train), ("ma_sam", train_classes)])
def test_studies_without_an_object_hinder_nothing(tmp_path: Path, method: str, learn) -> None:
    volume, mask, _ = CASES[0].read()
    nothing = Nameless("healthy", "healthy", lambda: (volume, np.zeros_like(mask), {}))
    wanted = replace(request(length=Length(steps=2)), method=method)
    sides = [nothing, *CASES[:2]], [*CASES[3:], nothing]
    assert learn(small_sam("tiny_vit"), *sides, tmp_path, wanted).steps == 2


def test_training_goes_on_from_a_version(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    first = train(sam, CASES[:2], CASES[3:], tmp_path / "first", request(measured=0))
    second = train(
        sam,
        CASES[:2],
        CASES[3:],
        tmp_path / "second",
        request(method=None, start=first.candidate, measured=0),
    )
    assert read_card(second.candidate).parent == first.candidate.name
    assert (tmp_path / "second" / "history.csv").read_text().splitlines()[1].startswith("0,")


def test_the_labels_are_learnt_as_names_and_further_ones_beside_them(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    wanted = request(method="decoder_refined", labels={2: "far"}, length=Length(steps=8), measured=0)
    first = train(sam, CASES, [], tmp_path / "first", wanted)
    second = train(
        sam, CASES, [], tmp_path / "second",
        replace(wanted, method=None, labels={1: "near"}, start=first.candidate),
    )  # fmt: skip
    before, after = (load_adapter(sam, done.candidate) for done in (first, second))
    assert before.method.names == ("far",)
    assert after.method.names == ("far", "near")
    assert before.adapters.names[0].abs().max() > 1e-4
    assert after.adapters.names[1].abs().max() > 1e-4


def test_what_a_click_means_is_learnt_from_the_name(tmp_path: Path) -> None:
    """Of a ball in a ball, clicked in the middle, the name alone says which is meant."""
    cases = [Nameless(str(n), str(n), partial(onion, n)) for n in range(8)]
    settings = PLAIN.model_copy(update={"adapter_rate": 3e-2, "rate": 3e-3, "epoch_items": 16})
    wanted = request(method="decoder_refined", length=Length(steps=60), settings=settings, measured=0)
    sam = small_sam("tiny_vit")
    done = train(sam, cases[:6], cases[6:], tmp_path, wanted)
    segmenter = Segmenter(load_adapter(sam, done.candidate))
    volume, mask, names = onion(9)
    middle = Prompt(foreground=np.array([[20.0, 20.0, 1.0]]))
    found = {
        name: segmenter.about(name).segment_slice(volume, middle, 1).mask[:, :, 1] for name in names.values()
    }
    for value, name in names.items():
        other = names[3 - value]
        truth = mask[:, :, 1] == value
        assert dice(found[name], truth) > dice(found[other], truth) + 0.1


def onion(seed: int) -> tuple[Volume, np.ndarray, Mapping[int, str]]:
    """A ball, and the shell around it."""
    rng = np.random.default_rng(seed)
    i, j, _ = np.mgrid[:40, :40, :3]
    far = (i - 20) ** 2 + (j - 20) ** 2
    mask = np.asfortranarray(np.where(far < 36, 1, np.where(far < 200, 2, 0)).astype(np.uint8))
    voxels = (mask > 0) * 60.0 + 20 * (mask == 1) + rng.normal(0, 5, mask.shape)
    return Volume(np.asfortranarray(voxels, np.float32), np.eye(4), "MR"), mask, {1: "core", 2: "shell"}


def test_a_stopped_run_is_resumed_and_a_changed_one_is_not(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    longer = request(length=Length(epochs=3), measured=0)
    steps = iter(range(100))
    with pytest.raises(CancelledError):
        train(sam, CASES[:2], CASES[3:], tmp_path, longer, stop=lambda: next(steps) == 5)
    with pytest.raises(ConfigurationError, match="holds a run already"):
        train(sam, CASES[:2], CASES[3:], tmp_path, longer)
    with pytest.raises(ConfigurationError, match="other seed"):
        train(sam, CASES[:2], CASES[3:], tmp_path, request(length=Length(epochs=3), seed=9), resume=True)
    assert train(sam, CASES[:2], CASES[3:], tmp_path, longer, resume=True).steps == 6


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"method": "ma_sam"}, ConfigurationError, "multi-class"),
        ({"method": "sam"}, ConfigurationError, "nothing that could be trained"),
        ({"method": "nonsense"}, ConfigurationError, "choose one of"),
        ({"labels": {7: "absent"}}, BadInputError, "nothing to learn"),
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path: Path, changed: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        train(small_sam("tiny_vit"), CASES[:2], [], tmp_path, request(**changed))


def test_nothing_is_resumed_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        train(small_sam("tiny_vit"), CASES[:2], [], tmp_path, request(), resume=True)


def test_a_slab_method_trains(tmp_path: Path) -> None:
    done = train(small_sam("vit"), CASES[:2], CASES[3:], tmp_path, request(method="med_sa", measured=0))
    assert (done.candidate / "adapter.safetensors").is_file()


def test_the_rate_rises_and_falls() -> None:
    assert rate_at(0, 0.1) == 0
    assert rate_at(0.1, 0.1) == pytest.approx(1.0)
    assert rate_at(0.55, 0.1) == pytest.approx(0.5)
    assert rate_at(1, 0.1) == pytest.approx(0)


def test_the_settings_that_ship_are_valid() -> None:
    for name in ("default", "short", "starter"):
        assert read_settings(name).name == name


def test_another_method_is_placed_on_the_adapter_to_start_from(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    first = train(sam, CASES[:2], CASES[3:], tmp_path / "first", request(measured=0)).candidate
    wanted = request(method="med_sa_2d", start=first, measured=0)
    second = train(sam, CASES[:2], CASES[3:], tmp_path / "second", wanted).candidate
    card = read_card(second)
    assert card.method.name == "med_sa_2d"
    assert card.method.carries == read_card(first).method.trains
    third = train(
        sam, CASES[:2], CASES[3:], tmp_path / "third", request(method=None, start=second, measured=0)
    ).candidate
    assert read_card(third).method == card.method
    with pytest.raises(ConfigurationError, match="adapters of its own"):
        train(sam, CASES[:2], [], tmp_path / "fourth", request(method="lora", start=third))


TWICE = PLAIN.model_copy(update={"decoder_first": 0.5})


def test_the_decoder_learns_before_the_encoders_adapters_are_placed_on_it(tmp_path: Path) -> None:
    said: list[float] = []
    done = train(
        small_sam("tiny_vit"), CASES[:3], CASES[3:], tmp_path,
        request(method="med_sa_2d", settings=TWICE, length=Length(epochs=2)),
        told=lambda what, part: said.append(part) if what == "training" else None,
    )  # fmt: skip
    first, second = read_card(tmp_path / "decoder" / "candidate"), read_card(done.candidate)
    assert (first.method.name, second.method.name) == ("decoder_prompt", "med_sa_2d")
    assert second.method.carries == first.method.trains
    assert second.parent is None
    assert not first.metrics
    assert set(second.metrics) == {"before", "after"}
    assert said == sorted(said)
    assert said[-1] == 1
    assert done.steps == 4


@pytest.mark.parametrize("last", [False, True], ids=["while the decoder learns", "later"])
def test_both_parts_of_a_run_are_resumed(tmp_path: Path, last: bool) -> None:
    wanted = request(method="med_sa_2d", settings=TWICE, length=Length(epochs=4), measured=0)
    asked = []
    whole = train(
        small_sam("tiny_vit"), CASES[:3], CASES[3:], tmp_path / "whole", wanted,
        stop=lambda: bool(asked.append(0)),
    )  # fmt: skip
    steps, end = iter(range(100)), len(asked) - 1 if last else 6
    with pytest.raises(CancelledError):
        train(
            small_sam("tiny_vit"), CASES[:3], CASES[3:], tmp_path / "parts", wanted,
            stop=lambda: next(steps) >= end,
        )  # fmt: skip
    with pytest.raises(ConfigurationError, match="holds a run already"):
        train(small_sam("tiny_vit"), CASES[:3], CASES[3:], tmp_path / "parts", wanted)
    again = train(small_sam("tiny_vit"), CASES[:3], CASES[3:], tmp_path / "parts", wanted, resume=True)
    files = [(run.candidate / "adapter.safetensors").read_bytes() for run in (whole, again)]
    assert files[0] == files[1]


def test_what_cannot_be_trained_is_said_before_the_decoder_learns(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="multi-class"):
        train(
            small_sam("tiny_vit"), CASES[:2], [], tmp_path / "run", request(method="ma_sam", settings=TWICE)
        )
    assert not (tmp_path / "run").exists()
