"""`python -m medsa.demo` as make calls it: it starts everything, proves it, and takes everything with it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from medsa.demo import orthanc as orthanc_module
from medsa.demo.__main__ import main

DEMO = [sys.executable, "-m", "medsa.demo"]
START = 240


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo with its folder in this test's."""
    process = subprocess.Popen([*DEMO, "--folder", str(tmp_path / "demo")], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def addresses(demo: subprocess.Popen[str]) -> list[str]:
    """What it prints, once it says how to end it: Orthanc's address, the server's, the viewer's."""
    assert demo.stdout
    lines = []
    for line in demo.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            return re.findall(r"http://\S+", "".join(lines))
    raise AssertionError(f"the demo ended: {''.join(lines)}")


def port_is_closed(url: str, within: float = 30) -> bool:
    """Whether nobody listens there any more, or soon not."""
    port, deadline = int(url.split("/")[2].rpartition(":")[2]), time.monotonic() + within
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return True
        time.sleep(0.2)
    return False


def test_it_shows_the_viewer_refuses_a_second_one_and_ctrl_c_ends_everything(
    demo: subprocess.Popen[str], tmp_path: Path
) -> None:
    store, server, studies, *_ = found = addresses(demo)
    assert sum("StudyInstanceUIDs=" in address for address in found) == 3
    assert "OHIF" in httpx.get(studies).text
    assert len(httpx.get(f"{store}/studies").json()) == 3

    second = subprocess.run(
        [*DEMO, "--folder", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    assert second.returncode == 2
    assert "another demo runs" in second.stderr

    demo.send_signal(signal.SIGINT)
    assert demo.wait(timeout=60) == 0
    assert port_is_closed(store, within=0.5)
    assert port_is_closed(server, within=0.5)


def test_a_demo_that_is_killed_leaves_nobody_behind(demo: subprocess.Popen[str]) -> None:
    store, server, *_ = addresses(demo)
    demo.kill()
    demo.wait(timeout=30)
    assert port_is_closed(store)
    assert port_is_closed(server)


def test_the_check_clicks_saves_and_ends_well(tmp_path: Path) -> None:
    temporary = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*DEMO, "--check"], capture_output=True, text=True, timeout=2 * START, env=temporary, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("liver", "white matter", "mean Dice", "the SEG is in the store"):
        assert word in done.stdout
    assert not list(tmp_path.glob("medsa-demo-*"))


def test_without_orthanc_it_says_the_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(orthanc_module, "PROGRAMS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--folder", str(tmp_path / "demo")]) == 2
    assert orthanc_module.INSTALL in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
