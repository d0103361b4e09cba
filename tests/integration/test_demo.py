"""The demo's Orthanc and studies: they start, keep what they are given, and are what they claim to be."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from medsa.demo import orthanc as orthanc_module
from medsa.demo.orthanc import Orthanc, OrthancError
from medsa.demo.studies import DemoStudy, abdomen, save, stow
from medsa.errors import StoreError, StoreUnavailableError


def _count(server: Orthanc) -> int:
    return int(httpx.get(f"{server.url}/statistics", auth=server.auth).json()["CountInstances"])


def test_a_restart_on_the_same_folder_keeps_the_studies(
    new_orthanc: Callable[..., Orthanc], demo_abdomen: DemoStudy
) -> None:
    server = new_orthanc()
    assert stow(server.dicomweb_url, demo_abdomen.datasets) == len(demo_abdomen.datasets)
    server.stop()
    assert _count(new_orthanc()) == len(demo_abdomen.datasets)


def test_storing_the_same_study_again_doubles_nothing(orthanc: Orthanc, demo_abdomen: DemoStudy) -> None:
    before = _count(orthanc)
    again = abdomen((64, 64, 20))
    assert stow(orthanc.dicomweb_url, again.datasets) == len(demo_abdomen.datasets)
    assert _count(orthanc) == before


def test_the_folder_is_for_its_owner_only(orthanc: Orthanc) -> None:
    assert stat.S_IMODE(orthanc.folder.stat().st_mode) == 0o700
    for path in orthanc.folder.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_with_a_password_nobody_else_gets_in(
    new_orthanc: Callable[..., Orthanc], demo_spine: DemoStudy
) -> None:
    server = new_orthanc(user="medsa", password="a secret")
    assert httpx.get(f"{server.dicomweb_url}/studies").status_code == 401
    with pytest.raises(StoreError, match="refuses the server's login"):
        stow(server.dicomweb_url, demo_spine.datasets)
    assert stow(server.dicomweb_url, demo_spine.datasets, server.auth) == 1


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from medsa.demo.orthanc import Orthanc\n"
        f"server = Orthanc(Path({str(tmp_path / 'orthanc')!r})).start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 30
    while _running(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _running(child)


def _running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_missing_orthanc_is_an_error_with_the_command_to_type(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr(orthanc_module, "PROGRAMS", ())
    with pytest.raises(OrthancError, match="apt-get install orthanc orthanc-dicomweb"):
        Orthanc(tmp_path / "none").start()


def test_an_orthanc_that_cannot_start_names_its_log(tmp_path: Path, orthanc: Orthanc) -> None:
    with pytest.raises(OrthancError, match=r"orthanc\.log"):
        Orthanc(tmp_path / "second", port=orthanc.port, timeout=10).start()


def test_storing_where_nobody_listens_says_so(demo_spine: DemoStudy) -> None:
    with pytest.raises(StoreUnavailableError, match="is it running"):
        stow(f"http://127.0.0.1:{orthanc_module.free_port()}/dicom-web", demo_spine.datasets)


@pytest.mark.parametrize("name", ["demo_abdomen", "demo_brain", "demo_spine"])
def test_the_demo_studies_are_valid_dicom_of_nobody(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    study: DemoStudy = request.getfixturevalue(name)
    first = study.datasets[0]
    assert str(first.PatientName).startswith("DEMO^")
    assert len({str(dataset.SOPInstanceUID) for dataset in study.datasets}) == len(study.datasets)
    for mask in study.truth.values():
        assert mask.shape == (first.Columns, first.Rows, len(study.datasets))
        assert 0 < mask.mean() < 0.5
    if not shutil.which("dciodvfy"):
        return
    save(tmp_path, study.datasets[:2])
    for path in tmp_path.glob("*.dcm"):
        lines = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True).stderr.splitlines()
        assert [line for line in lines if line.startswith("Error") and "Laterality" not in line] == []


def test_the_drawn_organs_have_the_values_a_ct_would_give_them(demo_abdomen: DemoStudy) -> None:
    values = np.stack([dataset.pixel_array.T for dataset in demo_abdomen.datasets], axis=2).astype(int) - 1024
    means = {name: float(np.median(values[mask])) for name, mask in demo_abdomen.truth.items()}
    assert (
        80 < means["liver"] < means["spleen"] < means["aorta"] < means["left kidney"] < means["spine"] < 300
    )
    assert values.min() >= -1024
    assert np.median(values[:3]) < -900


def test_another_seed_bends_the_anatomy_and_changes_the_uids(demo_abdomen: DemoStudy) -> None:
    other = abdomen((64, 64, 20), seed=1)
    assert other.series_uid != demo_abdomen.series_uid
    assert (other.truth["liver"] != demo_abdomen.truth["liver"]).any()
