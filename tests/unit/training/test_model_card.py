"""Model cards: what an adapter is and is not for, from its own files, with its figures."""

import stat
from pathlib import Path

import numpy as np
import pytest
from tests.unit.adapters.conftest import small_sam

from medsa.adapters.inject import adapt
from medsa.adapters.state import SHIPPED, read_card, save_adapter
from medsa.data.volume import Volume
from medsa.errors import BadInputError, NotFoundError
from medsa.training.cases import Nameless
from medsa.training.model_card import add_figures, kind_of, write_model_card

FIGURES = {"1 point": {"mean": 0.81234, "low": 0.7, "high": 0.9, "n": 24}}


@pytest.mark.parametrize(("method", "says"), [("ma_sam", "hears no click"), ("med_sa", "slabs of 5 slices")])
def test_a_card_is_written_from_the_versions_own_files(tmp_path: Path, method: str, says: str) -> None:
    model = adapt(small_sam("vit"), method)
    studies = {"training": ("0a", "0b"), "validation": ("0c",)}
    save_adapter(
        model, tmp_path, labels=("liver",), studies=studies, metrics={"after": {"1 pt": 0.8}}, parent="v3"
    )
    path = write_model_card(
        tmp_path, data="CT volumes", training="3 steps", figures=FIGURES, measured="2 held-out studies"
    )
    text = path.read_text()
    assert says in text
    for part in (
        "liver",
        "CT volumes",
        "3 steps",
        "2 training, 1 validation",
        "begun with: v3",
        "2 held-out studies:",
    ):
        assert part in text
    assert "| 1 point | 0.812 | 0.700 to 0.900 | 24 |" in text
    assert "| after | 0.800 |" in text
    assert f"{sum(p.numel() for _, p in model.kept_parameters()):,} numbers" in text
    assert not {"0a", "0b", "0c"} & set(text.split())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_card(tmp_path).labels == ("liver",)


def test_figures_found_later_are_added_once_by_their_title(tmp_path: Path) -> None:
    save_adapter(adapt(small_sam("vit"), "med_sa_2d"), tmp_path, metrics={"after": {"1 pt": 0.8}})
    path = write_model_card(tmp_path, data="CT volumes", training="3 steps")
    before = path.read_text()
    for mean, title in ((0.1, "Skin"), (0.2, "Polyps"), (0.3, "Skin")):
        figures = {"1 point": {"mean": mean, "low": 0.05, "high": 0.9, "n": 7}}
        add_figures(tmp_path, title, "eyes open", figures)
    text = path.read_text()
    assert [text.count(part) for part in ("### Skin\n", "### Polyps\n", "eyes open:", "| 0.100 |")] == [
        1,
        1,
        2,
        0,
    ]
    assert "| 1 point | 0.300 | 0.050 to 0.900 | 7 |" in text
    kept = [line for line in text.splitlines() if line in before.splitlines()]
    assert kept[-1] == before.splitlines()[-1]
    assert set(before.splitlines()) <= set(text.splitlines())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("# Mine")
    with pytest.raises(BadInputError, match="no model card"):
        add_figures(tmp_path, "Skin", "", figures)
    path.unlink()
    with pytest.raises(NotFoundError):
        add_figures(tmp_path, "Skin", "", figures)


def test_a_folder_without_a_version_gets_none(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        write_model_card(tmp_path, data="", training="")
    assert not list(tmp_path.iterdir())


def test_what_studies_are_is_told_from_one_of_them() -> None:
    def case(slices: int, modality: str) -> Nameless:
        volume = Volume(np.zeros((4, 4, slices), np.float32, order="F"), np.eye(4), modality)
        return Nameless("", "", lambda: (volume, np.zeros((4, 4, slices), np.uint8), {}))

    assert (kind_of(case(3, "MR")), kind_of(case(1, ""))) == ("MR volumes", "images")


def test_every_shipped_adapter_has_a_card_of_its_own() -> None:
    for folder in SHIPPED.glob("*/*/"):
        text = (folder / "model_card.md").read_text()
        card = read_card(folder)
        assert card.method.title in text
        assert card.backbone_digest[:16] in text
        assert "Apache-2.0" in text
