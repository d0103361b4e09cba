"""The papers' protocols as files: each is whole, names what exists, and shows the paper's figures."""

import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.training.test_train import CASES

from medsa.adapters.inject import adapt
from medsa.comparison.compare import Comparison, Data
from medsa.comparison.figures import figures_of
from medsa.comparison.plan import Plan, plan_of, read_plan
from medsa.comparison.report import as_markdown, as_page
from medsa.config import CONFIGS, config_names
from medsa.datasets import read_dataset
from medsa.sam import build_sam

__all__ = ["one_thread"]

NAMES = config_names("experiments")


def plan(name: str) -> Plan:
    return read_plan(CONFIGS / "experiments" / f"{name}.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_is_whole_and_its_figures_are_parts_of_one(name: str) -> None:
    found = plan(name)
    if not name.startswith(("methods", "small_methods", "small_rates")):  # those are nobody's tables
        assert found.paper
        known = read_dataset(found.data).names.values() if found.data else ()
        labels = {label.casefold() for label in known}
        assert found.data or name.startswith("small_")  # for whatever is labelled
        named = {label for entrant in found.entrants for paper in entrant.paper.values() for label in paper}
        assert named - labels <= {"average", "adrenal glands"}
    figures = [*(entrant.paper for entrant in found.entrants), *found.others.values()]
    for metric, value in (
        pair
        for paper in figures
        for labels in paper.values()
        for values in labels.values()
        for pair in values.items()
    ):
        assert 0 < value < (100 if metric == "hd95" else 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_sees_neighbours_is_measured_with_them(name: str) -> None:
    """But where there are none, in single pictures."""
    found = plan(name)
    deep = [entrant for entrant in found.entrants if not entrant.promptless and entrant.read().depth > 1]
    pictures = found.data and read_dataset(found.data).modality not in ("CT", "MR")
    assert not deep or pictures or found.asked.slabs or found.asked.volumes


def test_every_table_of_the_papers_is_there() -> None:
    tables = {name for name in NAMES if "_table" in name}
    assert {name.split("_table")[1][0] for name in tables if name.startswith("med_sa")} == {"1", "2", "3"}
    assert {name.split("_table")[1][0] for name in tables if name.startswith("msa")} == {"1", "2", "3"}
    assert {f"ma_sam_{what}" for what in ("rank", "position", "decoder", "backbone")} <= set(NAMES)
    assert "gl_med_sa_table1" in NAMES
    med_sa = next(entrant for entrant in plan("med_sa_table1").entrants if entrant.method == "med_sa")
    assert med_sa.paper["1"]["average"] == {"dice": 0.883}


def test_the_plan_in_the_docs_is_one(tmp_path) -> None:
    text = (CONFIGS.parent / "docs" / "compare.md").read_text()
    path = tmp_path / "plan.yaml"
    path.write_text(text.split("```yaml")[1].split("```")[0])
    found = read_plan(path)
    assert [entrant.promptless for entrant in found.entrants] == [False] * 6 + [True] * 2
    assert found.entrants[3].read().encoder.low_rank.rank == 16
    assert found.length_of(found.entrants[2]).minutes == 5
    assert found.length_of(found.entrants[7]).minutes == 10


def test_every_entrant_can_be_built_with_its_changes() -> None:
    with torch.device("meta"):
        sam = build_sam("lite_medsam")
        wanted = {repr(e.read()): e.read() for name in NAMES for e in plan(name).entrants}
        assert all(adapt(sam, method).counts()["total"] for method in wanted.values())
        ranks = [adapt(sam, e.read()).counts()["parts"]["fact"] for e in plan("ma_sam_rank").entrants]
    assert ranks == sorted(set(ranks))
    both, *others = (
        adapt(small_sam("vit"), entrant.read()).counts()["parts"]["volumetric"]
        for entrant in reversed(plan("ma_sam_position").entrants)
    )
    assert others == [both / 2, both / 2, 0]


def test_one_experiment_runs_whole_on_a_small_model(tmp_path) -> None:
    content = plan("med_sa_table2_refuge2_disc").model_dump(mode="json")
    content |= {"backbone": "lite_medsam", "budget": {"steps": 1}}
    content["asked"] |= {"slices": 1}
    small = plan_of(content, "small")
    data = Data(CASES[:2], CASES[3:], {1: "near", 2: "far"})
    comparison = Comparison(small, data, tmp_path, load=lambda *_, **__: small_sam("tiny_vit"))
    figures = figures_of(comparison, comparison.go())
    text = as_markdown(figures)
    [row] = [line for line in text.splitlines() if line.startswith("| Med-SA | 1 point | average | Dice |")]
    paper, here = row.split("|")[5:7]
    assert (paper.strip(), 0 <= float(here) <= 1) == ("0.974", True)
    assert "| nnU-Net | no prompt | average | IoU | 0.873 | not run |" in text
    assert "<h2>The paper&#x27;s figures beside ours</h2>" in as_page(figures, {})
    assert np.isfinite(figures["entrants"][0]["summary"]["1"]["hd95"]["mean"])
