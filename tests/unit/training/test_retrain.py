"""A round: labels become a candidate, held-out patients decide, and nothing else moves the pointer."""

import json
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from tests.unit.adapters.conftest import small_sam

from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.data.volume import Volume
from medsa.errors import UnreadableImageError
from medsa.files import write_atomically
from medsa.training.gate import Rules
from medsa.training.length import Length
from medsa.training.rehearsal import rehearsal
from medsa.training.retrain import (
    BusyError,
    Labelled,
    Plan,
    Policy,
    progress_of,
    read_policy,
    retrain,
    splits_of,
    unused,
)
from medsa.training.settings import read_settings
from medsa.training.train import Request
from medsa.training.versions import VersionStore

SHAPE = (40, 36, 8)
LENIENT = Policy(
    slices=1, rehearsal=0, gate=Rules(level=0.5, label_loss=1, volume_loss=1, forgetting=1, deafness=9)
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def study(name, *, wrong=False, patient=None):
    """A disc of coarse grain on an even ground; a `wrong` label marks the corner instead."""
    rng = np.random.default_rng(sum(name.encode()))
    i, j = np.mgrid[: SHAPE[0], : SHAPE[1]]
    y, x, radius = rng.uniform(12, 26), rng.uniform(12, 22), rng.uniform(6, 9)
    disc = (i - y) ** 2 + (j - x) ** 2 < radius**2
    grain = rng.choice([-1.0, 1.0], (SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2])).repeat(2, 0).repeat(2, 1)
    voxels = 100 + 60 * disc[..., None] * grain + rng.normal(0, 4, SHAPE)
    mask = np.zeros(SHAPE, np.uint8, order="F")
    mask[(i + j < 16) if wrong else disc] = 1
    headers = ({"PatientID": patient},) if patient else ()
    volume = Volume(np.asfortranarray(voxels, np.float32), np.eye(4), "MR", headers=headers)
    return Labelled(name, f"{wrong}", lambda: (volume, mask, {1: "lesion"}))


def plan(**changed):
    changes = {"rate": 3e-3, "epoch_items": 64, "ema": 0.9, "follow": 0.0}
    settings = read_settings("default").model_copy(update=changes)
    request = Request("decoder_only", length=Length(epochs=4), settings=settings)
    return replace(Plan(request, LENIENT, forgetting=()), **changed)


QUICK = {"request": Request("decoder_only", length=Length(epochs=1))}
KEY = 32 * (1,)
STUDIES = [study(f"DOE^{name}") for name in "ABCDEFGHIJ"]


@pytest.fixture(scope="module")
def sam():
    made = small_sam("vit")
    return lambda: made


def with_key(folder):
    """A store in which who trains is always the same."""
    store = VersionStore(folder)
    store.folder.mkdir(mode=0o700)
    write_atomically(store.folder / "splits.json.key", bytes(KEY))
    return store


@pytest.fixture
def store(tmp_path):
    return with_key(tmp_path / "store")


@pytest.fixture(scope="module")
def trained(sam, tmp_path_factory):
    """A store after one good round."""
    store, heard = with_key(tmp_path_factory.mktemp("trained") / "store"), []

    def progress(what, part):
        heard.append((what, part, progress_of(store)))

    outcome = retrain(sam, STUDIES, store, plan(), progress)
    return store, outcome, heard


def test_a_candidate_that_learnt_the_site_is_served(trained):
    store, outcome, _ = trained
    assert outcome.what == "promoted", outcome.reasons
    assert store.current().name == outcome.version == "v0001"
    assert store.current().report["figures"]["gain"] > 0.05


def test_every_figure_and_the_decision_are_kept_and_nobody_is_named(trained):
    store, _, _ = trained
    report = store.current().report
    assert report["promoted"]
    assert sum(report["cases"].values()) == len(STUDIES)
    assert set(report["rows"]) == {"candidate", "current", "base"}
    held_out = report["rows"]["candidate"]["held-out"]
    assert sum(row["slice"] is not None for row in held_out) == report["cases"]["validation"]
    assert sum("volume" in row["values"] for row in held_out) == min(2, report["cases"]["validation"])
    decided = [entry for entry in store.decisions() if entry["event"] == "decided"]
    assert decided[0]["figures"] == report["figures"]
    for path in store.folder.rglob("*"):
        assert path.is_dir() or b"DOE" not in path.read_bytes()


def test_held_out_patients_are_in_no_version(trained):
    store, _, _ = trained
    splits = splits_of(store)
    sides = splits.assign(f"image {one.id}" for one in STUDIES)
    held = {splits.hashed(one.id) for one in STUDIES if sides[f"image {one.id}"] == "validation"}
    trained_on = set(store.current().card.studies["training"])
    assert held
    assert trained_on
    assert not held & trained_on


def test_progress_is_told_and_kept_while_it_runs_only(trained):
    store, _, heard = trained
    assert list(dict.fromkeys(what for what, _, _ in heard)) == ["reading", "training", "measuring"]
    assert all(kept == {"what": what, "part": round(part, 3)} for what, part, kept in heard)
    assert progress_of(store) is None


def test_a_round_leaves_versions_and_records_only_all_private(trained):
    store, _, _ = trained
    kept = {path.name for path in store.folder.iterdir() if not path.name.endswith(".lock")}
    assert kept == {"v0001", "current", "decisions.jsonl", "splits.json", "splits.json.key", "used.json"}
    for path in store.folder.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_without_a_new_label_nothing_is_done(sam, trained):
    store, _, _ = trained
    before = store.names()
    outcome = retrain(sam, STUDIES, store, plan())
    assert (outcome.what, outcome.reasons) == ("nothing", ("no label is new since the last round",))
    assert store.names() == before
    changed = [replace(STUDIES[0], state="later"), *STUDIES[1:]]
    assert unused(store, {one.id: one.state for one in changed}) == [STUDIES[0].id]


def test_wrong_labels_make_no_version_that_is_served(sam, trained):
    store, good, _ = trained
    sides = splits_of(store).assign(f"image {one.id}" for one in STUDIES)
    spoilt = [study(one.id, wrong=True) if sides[f"image {one.id}"] == "training" else one for one in STUDIES]
    outcome = retrain(sam, spoilt, store, plan())
    assert outcome.what == "refused"
    assert "not better on held-out patients" in outcome.reasons[0]
    assert outcome.version in store.names()
    assert store.current().name == good.version


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([], "no label is new"),
        ([study("a", patient="DOE"), study("b", patient="DOE")], "all labels are of one patient"),
        ([replace(study("a"), read=lambda: _unreadable())], "no image has a label that can be read"),
    ],
)
def test_why_nothing_is_done_is_said(sam, store, cases, says):
    outcome = retrain(sam, cases, store, plan(**QUICK))
    assert outcome.what == "nothing"
    assert says in outcome.reasons[0]
    assert store.names() == []


def _unreadable():
    raise UnreadableImageError("cut off")


def test_a_round_whose_minutes_are_over_at_once_makes_no_version_and_says_why(sam, store):
    short = plan(request=Request("decoder_only", length=Length(minutes=1e-9)))
    outcome = retrain(sam, STUDIES[:4], store, short)
    assert outcome.what == "nothing"
    assert "minutes" in outcome.reasons[0]
    assert not store.names()


def test_one_bad_label_spoils_no_round(sam, store):
    cases = [*STUDIES[:3], replace(study("bad"), read=_unreadable)]
    outcome = retrain(sam, cases, store, plan(**QUICK))
    assert outcome.version == "v0001"
    assert store.get("v0001").report["cases"]["unreadable"] == 1


def test_a_pinned_version_stays_whatever_is_better(sam, store, tmp_path):
    store.promote(store.add(_untaught(sam, tmp_path / "untaught"), {}).name, pin=True)
    outcome = retrain(sam, STUDIES, store, plan())
    assert outcome.what == "refused"
    assert "v0001 is pinned" in outcome.reasons[0]
    assert store.pointer().name == "v0001"


def test_a_version_promoted_by_somebody_meanwhile_is_not_overtaken(sam, store, tmp_path):
    store.add(_untaught(sam, tmp_path / "untaught"), {})

    def progress(what, _part):
        if what == "measuring" and store.pointer().name is None:
            store.promote("v0001")

    outcome = retrain(sam, STUDIES, store, plan(), progress)
    assert outcome.what == "refused"
    assert "meanwhile" in outcome.reasons[0]
    assert store.pointer().name == "v0001"


def _untaught(sam, folder):
    """An adapter of the same method that has learnt nothing yet."""
    save_adapter(adapt(sam(), "decoder_only"), folder)
    return folder


def test_progress_of_a_killed_round_is_none(store):
    (store.folder / "progress.json").write_text('{"what": "training", "part": 0.5}')
    assert progress_of(store) is None
    with FileLock(store.folder / ".round.lock"):
        assert progress_of(store) == {"what": "training", "part": 0.5}


def test_what_is_rehearsed_is_drawn_the_same_way_every_time():
    for one, again in zip(rehearsal(9), rehearsal(9), strict=True):
        volume, mask, names = one.read()
        assert mask.shape == volume.shape
        assert set(np.unique(mask)) == {0, *names}
        assert (mask == again.read()[1]).all()


def test_what_is_rehearsed_is_no_label_of_the_version(sam, store):
    policy = LENIENT.model_copy(update={"rehearsal": 2})
    outcome = retrain(sam, STUDIES, store, plan(**QUICK, policy=policy))
    card = store.get(outcome.version).card
    assert {"drawn 0", "drawn 1"} < set(card.studies["training"])
    assert card.labels == ("lesion",)


def test_the_policy_that_ships_is_the_default():
    assert read_policy() == Policy(title=read_policy().title)


def test_one_round_at_a_time(sam, store):
    with FileLock(store.folder / ".round.lock"), pytest.raises(BusyError, match="running already"):
        retrain(sam, STUDIES, store, plan())


def test_what_a_killed_round_left_is_cleaned_up_by_the_next(sam, store):
    left = store.folder / ".round-dead"
    left.mkdir(parents=True)
    (left / "volume").write_text("secret")
    retrain(sam, [], store, plan())
    assert not left.exists()


def test_a_round_that_breaks_leaves_no_mess_and_no_version(sam, store):
    wrong = Plan(Request("sam"), forgetting=())
    with pytest.raises(Exception, match="nothing that could be trained"):
        retrain(sam, STUDIES, store, wrong)
    assert store.names() == []
    assert not list(store.folder.glob(".round-*"))
    assert len(unused(store, {one.id: one.state for one in STUDIES})) == len(STUDIES)
    assert json.loads((store.folder / "splits.json").read_text())
