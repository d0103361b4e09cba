"""The gate lets through what is better and has lost nothing, and says why it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.evaluation.protocol import WHOLE, Row
from medsa.training.gate import Rules, Tables, decide

SKILL = {"1 pt": 0.7, "3 pts": 0.75, "10 pts": 0.8, "auc": 0.75, "box": 0.8, "background": 0.05}


def table(validation=None, forgetting=None, *, patients=4, labels=("liver", "spleen"), noise=0.02, seed=0):
    """Rows of `patients` with two slices a label, around SKILL plus what is asked for."""
    rng = np.random.default_rng(seed)

    def rows(change, who):
        return tuple(
            Row(f"{who}{p}", f"case{p}", label, k, _values(change, label, rng, noise))
            for p in range(patients)
            for label in labels
            for k in range(2)
        )

    return Tables(rows(validation or {}, "p"), rows(forgetting or {}, "f"))


def _values(change, label, rng, noise):
    changed = {
        name: value + change.get(name, 0) + change.get((label, name), 0) for name, value in SKILL.items()
    }
    return {name: float(np.clip(value + rng.normal(0, noise), 0, 1)) for name, value in changed.items()}


BETTER = dict.fromkeys(("1 pt", "3 pts", "10 pts", "auc"), 0.1)
NOW = table(seed=1)


def test_a_better_candidate_is_promoted_with_its_figures():
    decision = decide(table(BETTER), NOW, NOW)
    assert decision.promoted
    assert decision.figures["gain"] == pytest.approx(0.1, abs=0.03)
    assert decision.figures["candidate, held-out, auc"] == pytest.approx(0.85, abs=0.02)
    assert "on held-out patients" in decision.reasons[0]


@pytest.mark.parametrize(
    ("validation", "forgetting", "says"),
    [
        ({}, {}, "not better on held-out patients"),
        ({"auc": -0.2}, {}, "not better on held-out patients"),
        ({**BETTER, "background": 0.6}, {}, "deaf to prompts"),
        ({**BETTER, "auc": 0.4, ("spleen", "auc"): -0.5}, {}, "worse at spleen with clicks"),
        ({**BETTER, ("liver", "box"): -0.2}, {}, "worse at liver with boxes"),
        (BETTER, {"box": -0.2}, "forgotten what the base can do with boxes"),
        (BETTER, {"auc": -0.2}, "forgotten what the base can do with clicks"),
    ],
)
def test_what_is_wrong_with_a_candidate_is_said(validation, forgetting, says):
    decision = decide(table(validation, forgetting), NOW, NOW)
    assert not decision.promoted
    assert any(says in reason for reason in decision.reasons), decision.reasons


@pytest.mark.parametrize(("value", "promoted"), [(0.66, True), (0.64, False)])
def test_what_no_longer_finds_the_volume_is_refused(value, promoted):
    def with_volumes(known, value):
        rows = [Row("p0", "case0", label, WHOLE, {"volume": value}) for label in ("liver", "spleen")]
        return Tables((*known.validation, *rows), known.forgetting)

    decision = decide(with_volumes(table(BETTER), value), with_volumes(NOW, 0.7), NOW)
    assert decision.promoted is promoted
    assert decision.figures["current, held-out, volume"] == pytest.approx(0.7)
    assert promoted or "worse at liver with one click through the volume: Dice -0.060" in decision.reasons


def test_all_reasons_are_given_at_once():
    decision = decide(table({"background": 0.7, "box": -0.3}, {"box": -0.3}), NOW, NOW)
    assert len(decision.reasons) == 5


def test_without_a_held_out_patient_nothing_is_promoted():
    nobody = Tables((), NOW.forgetting)
    decision = decide(nobody, nobody, nobody)
    assert not decision.promoted
    assert "no held-out patient" in decision.reasons[0]


def test_a_gain_within_the_noise_is_none():
    noisy = decide(
        table({"auc": 0.03}, noise=0.15, patients=2, seed=3), table(noise=0.15, patients=2, seed=4), NOW
    )
    clear = decide(table({"auc": 0.03}, noise=0.005), table(noise=0.005, seed=1), NOW)
    assert (noisy.promoted, clear.promoted) == (False, True)


def test_one_patient_is_enough_when_its_slices_agree():
    one = {"patients": 1, "labels": ("liver",)}
    now = table(**one, seed=1)
    assert decide(table(BETTER, **one), now, now).promoted


def test_the_margin_is_what_a_candidate_must_surpass():
    candidate = table(BETTER)
    assert decide(candidate, NOW, NOW, Rules(margin=0.02)).promoted
    assert not decide(candidate, NOW, NOW, Rules(margin=0.15)).promoted


@settings(max_examples=25, deadline=None)
@given(gain=st.floats(-0.3, 0.2), seed=st.integers(0, 1000))
def test_nothing_that_is_worse_on_average_is_ever_promoted(gain, seed):
    candidate = table({"auc": gain}, seed=seed)
    decision = decide(candidate, NOW, NOW)
    assert not decision.promoted or decision.figures["gain"] > 0
    assert decide(candidate, NOW, NOW) == decision
