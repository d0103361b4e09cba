"""Versions stay, the pointer moves as a whole, every decision is on record, and a crash breaks nothing."""

import itertools
import json
import multiprocessing
import os
import random
import signal
import stat
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from medsa import cli
from medsa.errors import ConfigurationError, NotFoundError
from medsa.training.versions import Pointer, VersionStore, versions_folder


@pytest.fixture
def store(tmp_path):
    return VersionStore(tmp_path / "store")


def test_nothing_is_served_by_a_store_that_does_not_exist(store):
    assert store.current() is None
    assert store.names() == store.decisions() == []
    assert not store.folder.exists()


def test_a_candidate_becomes_a_version_that_is_served_only_when_promoted(store, candidate):
    version = store.add(candidate(labels=("liver",)), {"promoted": True})
    assert (version.name, version.card.labels, version.report) == ("v0001", ("liver",), {"promoted": True})
    assert store.current() is None
    store.promote("v0001")
    assert store.current() == version


def test_a_folder_without_an_adapter_is_no_candidate(store, tmp_path):
    with pytest.raises(NotFoundError, match=r"card\.json"):
        store.add(tmp_path, {})


def test_rolling_back_walks_through_what_was_served_and_ends_at_the_start(store, candidate):
    for name in "abc":
        store.promote(store.add(candidate(name), {}).name)
    assert [getattr(store.rollback(), "name", None) for _ in range(3)] == ["v0002", "v0001", None]
    with pytest.raises(NotFoundError, match="nothing to take back"):
        store.rollback()
    assert store.names() == ["v0001", "v0002", "v0003"]


def test_every_move_is_in_the_log_with_what_was_before(store, candidate):
    store.promote(store.add(candidate("a"), {}).name)
    store.promote(store.add(candidate("b"), {}).name, pin=True, by="retraining")
    store.rollback()
    moves = [(e["event"], e["version"], e["before"], e["by"]) for e in store.decisions()]
    assert moves == [
        ("promoted", "v0001", None, "a person"),
        ("promoted", "v0002", "v0001", "retraining"),
        ("rolled back", "v0001", "v0002", "a person"),
    ]


def test_a_line_of_the_log_that_a_crash_cut_off_costs_no_other(store):
    store.log({"event": "one"})
    with (store.folder / "decisions.jsonl").open("a") as file:
        file.write('{"event": "cut')
    store.log({"event": "two"})
    assert [entry["event"] for entry in store.decisions()] == ["one", "two"]


def test_what_a_killed_process_left_is_no_version_and_goes(store, candidate):
    store.add(candidate("a"), {})
    (store.folder / ".coming-dead").mkdir()
    assert store.names() == ["v0001"]
    store.add(candidate("b"), {})
    assert not (store.folder / ".coming-dead").exists()


def test_only_the_owner_reads(store, candidate):
    store.promote(store.add(candidate(), {}).name)
    for path in (store.folder, *store.folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_damaged_pointer_is_said_and_can_be_written_anew(store, candidate):
    store.promote(store.add(candidate(), {}).name)
    (store.folder / "current").write_text("v0001")
    with pytest.raises(ConfigurationError, match="damaged"):
        store.current()
    assert store.promote("v0001").name == store.current().name


def _work(folder, candidates):
    store = VersionStore(folder)
    for step in itertools.count():
        store.promote(store.add(candidates[step % len(candidates)], {"step": step}).name)
        if step % 3 == 2:
            store.rollback()


def test_kill_9_at_ten_random_moments_leaves_a_whole_version_served(store, candidate):
    candidates = [candidate("a"), candidate("bb")]
    store.promote(store.add(candidates[0], {"step": -1}).name)
    whole = {(folder / "adapter.safetensors").read_bytes() for folder in candidates}
    moments = random.Random(0)
    for _ in range(10):
        process = multiprocessing.get_context("fork").Process(target=_work, args=(store.folder, candidates))
        before = len(store.decisions())
        process.start()
        while len(store.decisions()) == before:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        served = store.current()
        assert (served.folder / "adapter.safetensors").read_bytes() in whole
        assert "step" in served.report
        for name in store.names():
            assert "step" in store.get(name).report
        store.promote(store.names()[0])  # the dead hold no lock


class Pointers(RuleBasedStateMachine):
    """The pointer is the stack of what was promoted and not taken back."""

    def __init__(self):
        super().__init__()
        from tempfile import TemporaryDirectory

        self.temporary = TemporaryDirectory()
        self.store = VersionStore(self.temporary.name)
        self.served = []
        self.store.get = lambda name: name  # what a version holds does not matter here

    @rule(name=st.sampled_from(["v0001", "v0002", "v0003"]), pin=st.booleans())
    def promote(self, name, pin):
        self.store.promote(name, pin=pin)
        self.served = [*(n for n in self.served if n != name), name]
        self.pinned = pin

    @precondition(lambda self: self.served)
    @rule()
    def rollback(self):
        self.store.rollback()
        self.served.pop()
        self.pinned = False

    @invariant()
    def agrees(self):
        assert self.store.pointer() == Pointer(tuple(self.served), bool(self.served) and self.pinned)

    def teardown(self):
        self.temporary.cleanup()


Pointers.TestCase.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)
TestPointers = Pointers.TestCase


def test_the_command_line_lists_shows_promotes_and_takes_back(store, candidate, capsys):
    figures = {"candidate, held-out, auc": 0.8125}
    store.add(candidate("a"), {"promoted": True, "figures": figures, "rows": [1]})
    at = ["--store", str(store.folder)]
    assert cli.main(["versions", "list", *at]) == 0
    assert "no version is served" in capsys.readouterr().out
    assert cli.main(["versions", "promote", "v0001", "--pin", *at]) == 0
    assert cli.main(["versions", "list", *at]) == 0
    assert "*pinned  v0001" in (out := capsys.readouterr().out)
    assert "0.812" in out
    assert cli.main(["versions", "show", "v0001", *at]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["figures"] == figures
    assert "rows" not in shown
    assert cli.main(["versions", "rollback", *at]) == 0
    assert "started with" in capsys.readouterr().out
    assert cli.main(["versions", "show", "v0009", *at]) == 2
    assert "v0001" in capsys.readouterr().err
    assert cli.main(["versions", "list", "--store", str(store.folder / "none")]) == 2


def test_versions_are_found_by_the_datastore_they_belong_to(tmp_path, monkeypatch, candidate, capsys):
    monkeypatch.setenv("MEDSA_DATA", str(tmp_path / "data"))
    VersionStore(versions_folder("http://pacs/dicom-web", "lite_medsam")).add(candidate(), {})
    assert cli.main(["versions", "list", "--studies", "http://pacs/dicom-web/"]) == 0
    assert "v0001" in capsys.readouterr().out
