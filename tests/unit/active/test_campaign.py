"""The simulated campaign: paired, resumable, priced in clicks; and statistics that know what chance does."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.adapters.conftest import small_sam
from tests.unit.adapters.test_placement import randomise as taught

from medsa.active.campaign import CAP, Campaign, Design, clicks
from medsa.active.campaign_page import better_than_random, page, summed
from medsa.active.curves import areas, compare, curve, holm, interval
from medsa.active.embeddings import remembering
from medsa.active.strategies import STRATEGIES
from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.segmenter import Segmenter
from medsa.training.cases import Nameless
from medsa.training.length import Length
from medsa.training.retrain import Policy
from medsa.training.settings import read_settings
from medsa.training.train import Request

SHAPE, FEW = (40, 36, 5), 2


def study(name: str) -> Nameless:
    """A disc of coarse grain on an even ground, somewhere else in each study."""
    rng = np.random.default_rng(sum(name.encode()))
    i, j = np.mgrid[: SHAPE[0], : SHAPE[1]]
    disc = (i - rng.uniform(14, 24)) ** 2 + (j - rng.uniform(14, 20)) ** 2 < rng.uniform(8, 11) ** 2
    grain = rng.choice([-1.0, 1.0], (SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2])).repeat(2, 0).repeat(2, 1)
    voxels = 100 + 60 * disc[..., None] * grain + rng.normal(0, 4, SHAPE)
    mask = np.zeros(SHAPE, np.uint8, order="F")
    mask[disc] = 1
    volume = Volume(np.asfortranarray(voxels, np.float32), np.eye(4), "MR")
    return Nameless(f"study {name}", f"patient {name}", lambda: (volume, mask, {1: "lesion"}))


CASES = [study(name) for name in "ABCDEFGHIJ"]
SETTINGS = read_settings("default").model_copy(update={"rate": 3e-3, "ema": 0.9, "epoch_items": 16})
DESIGN = Design(
    ("random", "hybrid"), seeds=2, start=2, batch=1, budget=3, held_out=1, gate=False,
    request=Request("decoder_only", length=Length(steps=3), settings=SETTINGS),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole campaign and its folder."""
    folder = tmp_path_factory.mktemp("campaign") / "out"
    campaign = Campaign(small_sam("vit"), CASES, DESIGN, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medsa.active.campaign.CAP", FEW)
        return folder, campaign, campaign.run(), campaign.before()


def test_runs_of_a_seed_begin_alike_and_label_each_study_once_up_to_the_budget(done) -> None:
    _, campaign, runs, before = done
    assert DESIGN.rounds == 2
    for seed in range(2):
        assert runs["random"][seed][0] == runs["hybrid"][seed][0]
        for name in DESIGN.strategies:
            picked = [n for line in runs[name][seed] for n in line["picked"]]
            assert len(picked) == len(set(picked)) == DESIGN.budget
            assert [len(line["picked"]) for line in runs[name][seed]] == [2, 1]
    assert runs["random"][0][0]["picked"] != runs["random"][1][0]["picked"]
    assert {line["how"] for line in runs["hybrid"][0][1:]} == {"hybrid"}
    assert {case.patient for case in campaign.held_out}.isdisjoint(case.patient for case in campaign.pool)
    for line in runs["hybrid"][0]:
        assert 1 <= line["clicks per study"] <= FEW
        assert line["clicks"] == pytest.approx(line["clicks per study"] * len(line["picked"]))
    start = runs["random"][0][0]
    assert start["clicks per study"] == start["clicks per study, frozen"]  # nothing was learnt before it
    assert set(before) == set(start["figures"])


def test_a_stopped_campaign_goes_on_and_comes_to_the_same(done, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medsa.active.campaign.CAP", FEW)
    folder, _, runs, _ = done
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "hybrid-1")
    told = []
    sam = small_sam("vit")

    def refuse(_images):
        raise AssertionError("embeddings are kept")

    sam.__dict__["encode"] = refuse
    again = Campaign(sam, CASES, DESIGN, copy, told.append).run()
    assert told == ["hybrid, seed 1, round 2 of 2"]
    assert again["hybrid"][1][1]["picked"] == runs["hybrid"][1][1]["picked"]
    assert again["hybrid"][1][1]["figures"] == runs["hybrid"][1][1]["figures"]
    with pytest.raises(BadInputError, match="other data or options"):
        Campaign(small_sam("vit"), CASES, replace(DESIGN, batch=2), copy)


def test_other_strategies_and_fewer_seeds_are_the_same_campaign(done, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medsa.active.campaign.CAP", FEW)
    folder, _, runs, _ = done
    copy = tmp_path / "out"
    shutil.copytree(folder, copy)
    told = []
    design = replace(DESIGN, strategies=("random", "first"), seeds=1)
    again = Campaign(small_sam("vit"), CASES, design, copy, told.append).run()
    assert told == ["first, seed 0, round 2 of 2"]
    assert again["random"] == runs["random"][:1]
    assert again["first"][0][0] == runs["random"][0][0]


@pytest.mark.parametrize("gate", [False, True])
def test_strategies_that_pick_the_same_share_their_rounds(tmp_path, monkeypatch, gate) -> None:
    monkeypatch.setattr("medsa.active.campaign.CAP", FEW)
    monkeypatch.setitem(STRATEGIES, "likewise", STRATEGIES["first"])
    learnt = []
    work = Campaign._learnt
    monkeypatch.setattr(
        Campaign, "_learnt", lambda *args: learnt.append(args[1].parent.name + args[1].name) or work(*args)
    )
    design = replace(
        DESIGN, seeds=1, start=3, budget=5, gate=gate, policy=Policy(slices=1, rehearsal=0),
        strategies=("first", "likewise"),
    )  # fmt: skip
    shared = Campaign(small_sam("vit"), CASES, design, tmp_path / "shared").run()
    assert learnt == ["sharedstart-0", "sharedfirst-0", "sharedfirst-0"]
    alone = Campaign(
        small_sam("vit"), CASES, replace(design, strategies=("likewise",)), tmp_path / "alone"
    ).run()
    assert len(learnt) == 6
    assert shared["likewise"] == alone["likewise"]


def test_the_first_figure_is_that_of_the_version_it_begins_with(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medsa.active.campaign.CAP", FEW)
    sam = small_sam("vit")
    save_adapter(taught(adapt(sam, "decoder_only")), tmp_path / "origin")
    begun = [
        Campaign(sam, CASES, replace(DESIGN, origin=origin), tmp_path / name).before()
        for name, origin in (("base", None), ("version", tmp_path / "origin"))
    ]
    assert begun[0] != begun[1]


def test_another_input_size_is_another_campaign(done) -> None:
    with pytest.raises(BadInputError, match="other data or options"):
        Campaign(small_sam("vit", image_size=64), CASES, DESIGN, done[0])


def test_all_strategies_are_compared_on_one_seed_before_the_next(tmp_path, monkeypatch) -> None:
    def nothing_learnt(_self, _name, _seed, home, _runs):
        home.mkdir(exist_ok=True)
        return {"picked": [], "clicks": 0.0, "adapter": "", "figures": {}}

    monkeypatch.setattr("medsa.active.campaign.Campaign._round", nothing_learnt)
    told = []
    Campaign(small_sam("vit"), CASES, DESIGN, tmp_path / "out", told.append).run()
    assert [line.partition(", round")[0] for line in told if "round 2" in line] == [
        f"{name}, seed {seed}" for seed in range(2) for name in DESIGN.strategies
    ]


def test_a_held_out_study_without_an_object_does_not_count_as_a_failure(tmp_path) -> None:
    campaign = Campaign(small_sam("vit"), CASES, DESIGN, tmp_path / "out")
    figures = campaign._measured(campaign.first)
    volume, mask, _ = CASES[0].read()
    nothing = Nameless("healthy", "healthy", lambda: (volume, np.zeros_like(mask), {}))
    campaign.held_out.append(nothing)
    assert campaign._measured(campaign.first) == figures
    campaign.held_out[:] = [nothing]
    with pytest.raises(BadInputError, match="held out"):
        campaign._measured(campaign.first)


def test_with_the_gate_a_refused_candidate_changes_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medsa.active.campaign.CAP", FEW)
    policy = Policy(slices=1, rehearsal=0)
    design = replace(DESIGN, strategies=("random",), seeds=1, start=3, budget=4, gate=True, policy=policy)
    (rounds,) = Campaign(small_sam("vit"), CASES, design, tmp_path / "out").run()["random"]
    assert len(rounds) == 2
    for line in rounds:
        assert line["what"] in ("promoted", "refused", "nothing")
        if line["what"] != "promoted":
            assert line["adapter"] == ""


def test_too_few_studies_and_unknown_strategies_are_refused(tmp_path) -> None:
    for changed in ({"budget": 10}, {"start": 4}, {"start": 0}):
        with pytest.raises(BadInputError):
            Campaign(small_sam("vit"), CASES, replace(DESIGN, **changed), tmp_path)
    with pytest.raises(Exception, match="no strategy"):
        Campaign(small_sam("vit"), CASES, replace(DESIGN, strategies=("best",)), tmp_path)


def test_clicks_are_counted_to_the_goal_and_no_further(monkeypatch) -> None:
    segmenter, (volume, mask, _) = Segmenter(small_sam("vit")), CASES[0].read()
    truth = mask[:, :, 2] == 1
    asked = []

    class Answer:
        def __init__(self, found):
            self.mask = np.repeat(found[:, :, None], SHAPE[2], axis=2)

    def answer(_volume, prompt, *_, **__):
        asked.append(prompt)
        found = truth.copy()
        if len(asked) < 3:
            found[:: 2 if len(asked) == 2 else 1] = False
            found[13] = truth[13]
        return Answer(found)

    monkeypatch.setattr(segmenter, "segment_slice", answer)
    told = clicks(segmenter, volume, truth, 2)
    assert len(asked) == 3
    assert (told["noc85"], told["noc90"], told["3 pts"]) == (3, 3, 1)
    monkeypatch.setattr(segmenter, "segment_slice", lambda *_, **__: Answer(np.zeros_like(truth)))
    assert clicks(segmenter, volume, truth, 2)["noc90"] == CAP


def test_embeddings_are_kept_by_content(tmp_path) -> None:
    plain = small_sam("vit")
    images = torch.rand(2, 3, 48, 48)
    expected = plain.encode(images)
    kept = remembering(small_sam("vit"), tmp_path / "kept")
    torch.testing.assert_close(kept.encode(images), expected, atol=2e-3, rtol=1e-2)
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 2
    torch.testing.assert_close(kept.encode(images[:1]), kept.encode(images)[:1])
    assert len(list((tmp_path / "kept").glob("*.npy"))) == 2


def runs_of(heights: dict[str, list[float]]) -> dict:
    """Runs of three rounds whose curves rise from 0.5 by these, one a seed."""
    return {
        name: [
            [
                {"picked": [0, 1], "clicks": 10.0 - n, "clicks per study": 5.0 - n / 2,
                 "clicks per study, frozen": 5.0,
                 "figures": {"1 pt": 0.5 + rise * n / 2, "3 pts": 0.7, "noc85": 4.0, "noc90": 6.0}}
                for n in range(3)
            ]
            for rise in rises
        ]
        for name, rises in heights.items()
    }  # fmt: skip


def test_the_area_is_the_mean_height_of_the_curve() -> None:
    runs = runs_of({"random": [0.2, 0.4]})
    np.testing.assert_allclose(areas(runs, "1 pt")["random"], [0.6, 0.7])
    spent, values = curve(runs["random"][0], "1 pt", "clicks")
    assert spent.tolist() == [10, 19, 27]
    np.testing.assert_allclose(values, [0.5, 0.6, 0.7])


def test_a_clear_winner_is_told_and_chance_is_not() -> None:
    clear = runs_of({"random": [0.1, 0.12, 0.09, 0.11], "hybrid": [0.2, 0.22, 0.19, 0.22]})
    before = dict.fromkeys(("1 pt", "3 pts", "noc85", "noc90"), 0.5)
    summary = summed(clear, before)
    assert better_than_random(summary) == ["hybrid"]
    shown = page(clear, summary, {"data": "<b>10 & 3"})
    assert "Better than random beyond chance: hybrid" in shown
    assert "&lt;b&gt;10 &amp; 3" in shown
    assert shown.count("data:image/png;base64,") == 2
    json.dumps(summary, allow_nan=False)
    noise = runs_of({"random": [0.1, 0.2, 0.15, 0.11], "hybrid": [0.12, 0.18, 0.13, 0.14]})
    assert better_than_random(summed(noise, before)) == []
    single = summed(runs_of({"random": [0.1], "first": [0.3]}), before)
    assert better_than_random(single) == []
    page(runs_of({"random": [0.1], "first": [0.3]}), single, {})


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_makes_a_p_smaller_and_keeps_their_order(p: list[float]) -> None:
    corrected = holm(p)
    assert all(one <= other <= 1 for one, other in zip(p, corrected, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert len(compare({"a": np.array([1.0]), "b": np.array([2.0])})) == 1
    assert np.isnan(interval([1.0]).low)
