"""What the server makes of retraining: the pointer is followed, the status is told, requests are checked."""

import json
import signal
import sys
import threading
import time

import pytest
from filelock import FileLock
from monailabel import config
from tests.unit.adapters.conftest import small_sam

from medsa import cli
from medsa.adapters.inject import adapt
from medsa.adapters.state import save_adapter
from medsa.config import Options
from medsa.errors import BadInputError, ConfigurationError
from medsa.server import train
from medsa.server.folder import FolderStore
from medsa.server.retraining import Retraining, with_versions
from medsa.server.routes.status import page
from medsa.server.tasks import Runtime
from medsa.server.train import Training, checked, labelled
from medsa.training.length import Length
from medsa.training.retrain import BusyError, Policy
from medsa.training.versions import VersionStore, versions_folder

FIGURES = {"gain": 0.125, "candidate, held-out, auc": 0.625}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of versions, and what retrains into it over a small model."""
    sam = small_sam("vit")
    monkeypatch.setattr("medsa.server.tasks.load_sam", lambda *_args, **_more: sam)

    def make(**options):
        folder = tmp_path / "versions"
        folder.mkdir(exist_ok=True)
        made = Options.from_conf({"backbone": "vit_b", "adapters": str(folder), **options})
        runtime = Runtime(made)
        store = FolderStore(str(tmp_path / "studies"), runtime.labels)
        return Retraining(made, str(tmp_path / "studies"), store, runtime), runtime

    def version():
        save_adapter(adapt(sam, "decoder_only"), tmp_path / "candidate")
        return VersionStore(tmp_path / "versions").add(tmp_path / "candidate", {"figures": FIGURES}).name

    make.version = version
    return make


def test_a_promotion_by_anybody_is_followed_and_so_is_taking_it_back(site):
    retraining, runtime = site()
    assert runtime.models.name == "none"
    store, name = retraining.versions, site.version()
    retraining.follow()
    assert runtime.models.name == "none"
    store.promote(name)
    retraining.follow()
    assert runtime.models.name == name
    assert retraining.status()["figures"] == FIGURES
    store.rollback()
    retraining.follow()
    assert runtime.models.name == "none"


def test_viewers_show_how_far_a_round_is_and_how_good_the_served_version(site):
    name = site.version()
    retraining, _ = site()
    trainer = train.MedsaTrain(retraining._options)
    assert trainer.stats() == {"total_time": 1, "best_metric": 0}
    retraining.versions.promote(name)
    (retraining.versions.folder / "progress.json").write_text('{"what": "training", "part": 0.375}')
    with FileLock(retraining.versions.folder / ".round.lock"):
        assert trainer.stats() == {"epoch": 38, "total_epochs": 100, "best_metric": 0.625}


def test_a_damaged_store_is_told_and_stops_nothing(site):
    retraining, _ = site()
    (retraining.versions.folder / "current").write_text("x")
    assert "damaged" in retraining.status()["problem"]
    assert "damaged" in page(retraining.status())


def test_a_version_that_the_options_name_stays(site):
    first, second = site.version(), site.version()
    retraining, runtime = site(adapter=first)
    assert runtime.models.name == first
    retraining.versions.promote(second)
    retraining.follow()
    assert runtime.models.name == first


def test_a_version_that_cannot_be_served_leaves_the_one_before_it(site, caplog):
    first, second = site.version(), site.version()
    VersionStore(site()[0].versions.folder).promote(first)
    retraining, runtime = site()
    assert runtime.models.name == first
    (retraining.versions.folder / second / "adapter.safetensors").write_bytes(b"cut")
    retraining.versions.promote(second)
    retraining.follow()
    assert runtime.models.name == first
    assert "cannot be served" in caplog.text


def test_one_version_is_no_place_to_retrain_into(site, tmp_path):
    one = str(VersionStore(tmp_path / "versions").folder / site.version())
    with pytest.raises(ConfigurationError, match="is one version"):
        site(adapters=one, retrain_after="3")
    site(adapters=one)


def test_versions_lie_apart_for_each_datastore_and_backbone_and_no_login_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSA_DATA", str(tmp_path))
    places = [
        versions_folder("http://pacs/dicom-web", "lite_medsam"),
        versions_folder("http://pacs/dicom-web", "vit_b"),
        versions_folder("http://other/dicom-web", "lite_medsam"),
        versions_folder(str(tmp_path), "lite_medsam"),
    ]
    assert len(set(places)) == len(places)
    assert versions_folder("http://user:word@pacs/dicom-web/", "lite_medsam") == places[0]
    assert with_versions(Options(), "http://pacs/dicom-web").adapters == str(places[0])
    assert not any(place.exists() for place in places)


def test_a_folders_labels_are_cases_that_change_with_their_file(tmp_path):
    import nibabel
    import numpy as np

    from medsa.data.labels import load_labels

    for folder, value in (("", 7), ("labels/final", 5)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        image = nibabel.Nifti1Image(np.full((4, 4, 3), value, np.uint8), np.eye(4))
        nibabel.save(image, tmp_path / folder / "one.nii.gz")
    store = FolderStore(str(tmp_path), load_labels())
    (case,) = labelled(store)
    volume, mask, names = case.read()
    assert (case.id, names, mask.shape) == ("one", {5: "liver"}, volume.shape)
    label = tmp_path / "labels/final/one.nii.gz"
    label.write_bytes(label.read_bytes() + b"\0")
    assert labelled(store)[0].state != case.state


@pytest.mark.parametrize("wrong", [{"minutes": "5"}, {"minutes": 0}, {"minutes": True}, {"again": "yes"}])
def test_a_request_that_cannot_be_is_refused(wrong):
    with pytest.raises(BadInputError):
        checked(wrong)


def test_what_clients_add_to_a_request_does_not_matter():
    assert checked({"name": "train_01", "device": "cuda", "minutes": 5}) == {"minutes": 5.0}
    assert checked({"again": True}) == {"again": True}


def test_the_page_tells_the_status_and_runs_nothing_of_it(site):
    status = site()[0].status()
    assert "when somebody asks for it" in page(status)
    status |= {
        "version": "<script>",
        "figures": {"candidate, held-out, auc": 0.875},
        "next_run": "2030-01-01T02:00",
        "retrain_after": 4,
        "last_decision": {
            "when": "now",
            "event": "decided",
            "promoted": False,
            "reasons": ["worse at liver"],
        },
        "round": {
            "status": "RUNNING",
            "start_ts": "x",
            "details": [],
            "progress": {"what": "training", "part": 0.5},
        },
    }
    shown = page(status)
    assert "<script>" not in shown
    for text in ("0.875", "2030-01-01T02:00 or after 4", "refused. worse at liver", "training, 50 %"):
        assert text in shown


def test_a_round_runs_in_a_process_of_its_own_and_tells_why_it_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", '{"Modality": "CT"}')  # as its command does
    (tmp_path / "studies").mkdir()
    ended = threading.Event()
    options = Options.from_conf({}).model_copy(update={"adapters": str(tmp_path / "versions")})
    training = Training(options, str(tmp_path / "studies"), lambda _task: ended.set())
    assert training.status() is None
    started = training.start({"minutes": 1}, "a test")
    assert started["status"] == "RUNNING"
    assert started["request"] == {"model": "medsa", "why": "a test", "minutes": 1.0}
    with pytest.raises(BusyError):
        training.start()
    assert ended.wait(300)
    told = training.status()
    assert (told["status"], training.running) == ("DONE", False)
    assert told["details"][-1] == "nothing done: no label is new since the last round"
    assert training.stop() is None


@pytest.fixture
def long_rounds(monkeypatch):
    """Rounds that end when they are stopped."""
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(Training, "_command", lambda *_: command)


def _follow_to_its_end():
    """Wait for the threads that follow rounds, also one that has not begun to run, which cannot be joined."""
    ends = time.monotonic() + 20
    while any(thread.name == "retraining" for thread in threading.enumerate()):
        assert time.monotonic() < ends, "a round has not ended"
        time.sleep(0.01)


@pytest.mark.usefixtures("long_rounds")
@pytest.mark.parametrize("killed", [False, True])
def test_a_round_that_ends_with_its_server_goes_on_after_the_restart(site, killed):
    """Also when it gets the signal that ends the server itself, as systemd sends it, and ends first."""
    first, _ = site()
    first.begin()
    first.start()
    if killed:
        first.training._process.kill()
        while first.training.running:
            time.sleep(0.01)
    first.end()
    _follow_to_its_end()
    assert first.training.status()["status"] == ("ERROR" if killed else "STOPPED")
    second, _ = site()
    second.begin()
    try:
        ends = time.monotonic() + 20
        while not second.training.running:
            assert time.monotonic() < ends, "the round is lost"
            time.sleep(0.01)
        assert second.training.status()["request"]["why"] == "interrupted by a restart"
    finally:
        second.end()
        _follow_to_its_end()


@pytest.mark.usefixtures("long_rounds")
def test_a_round_that_somebody_stops_stays_stopped(site):
    retraining, _ = site()
    retraining.start()
    retraining.training.stop()
    _follow_to_its_end()
    assert not json.loads((retraining.versions.folder / "schedule.json").read_text())["running"]


def test_a_round_that_failed_is_over_for_the_next_start(site, monkeypatch):
    monkeypatch.setattr(Training, "_command", lambda *_: [sys.executable, "-c", "raise SystemExit(2)"])
    monkeypatch.setattr("medsa.server.retraining.SHUTDOWN_SECONDS", 0.01)
    retraining, _ = site()
    retraining.start()
    _follow_to_its_end()
    assert retraining.training.status()["status"] == "ERROR"
    assert not json.loads((retraining.versions.folder / "schedule.json").read_text())["running"]


def test_a_round_has_the_steps_of_its_policy_and_the_minutes_of_the_server(site, monkeypatch):
    plans = []
    monkeypatch.setattr(train, "read_policy", lambda: Policy(steps=7))
    monkeypatch.setattr(train, "retrain", lambda _load, _cases, _store, plan, _progress: plans.append(plan))
    retraining, _ = site(retrain_minutes="3")
    train.one_round(retraining._options, [], again=False)
    assert plans[0].request.length == Length(minutes=3, steps=7)


def test_settings_that_nobody_set_do_not_reach_a_round(monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_SEARCH_FILTER", '{"Modality": "CT"}')
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", "ann")
    monkeypatch.setattr(config.settings, "MONAI_LABEL_DICOMWEB_USERNAME", "ann")
    found = train._environment()
    assert "MONAI_LABEL_DICOMWEB_SEARCH_FILTER" not in found
    assert found["MONAI_LABEL_DICOMWEB_USERNAME"] == "ann"
    assert "PATH" in found


def test_the_command_says_what_is_missing_and_does_nothing_without_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MONAI_LABEL_STUDIES", raising=False)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["retrain"]) == 2
        assert "--studies names" in capsys.readouterr().err
        assert cli.main(["retrain", "--studies", str(tmp_path / "studies"), "--minutes", "0"]) == 2
        assert "retrain_minutes" in capsys.readouterr().err
        assert cli.main(["retrain", "--studies", str(tmp_path / "studies")]) == 0
        assert "nothing done: no label is new" in capsys.readouterr().out
    finally:
        signal.signal(signal.SIGTERM, handler)
