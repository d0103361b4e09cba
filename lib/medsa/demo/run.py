"""`make demo`: Orthanc with the demo studies, and the server, until Ctrl-C; only the folder stays."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import httpx

from medsa.demo.check import check
from medsa.demo.orthanc import Orthanc, find_orthanc
from medsa.demo.server import ROOT, Server
from medsa.demo.studies import DemoStudy, demo_studies, stow
from medsa.errors import MedsaError

FOLDER = ROOT / ".demo"

GUIDE = """\
In the viewer: choose what you are looking for in the panel on the right and click it in the image. A further
click refines, Shift+click takes away, "Save" writes it to the store; "?" shows the keys.
Ctrl-C here ends everything."""


class DemoError(MedsaError):
    """The demo cannot run here."""


def show(folder: Path = FOLDER, port: int = 8000) -> None:
    """Start everything, print the viewer's addresses, and stay until Ctrl-C or until something ends."""
    with running(folder, port) as (orthanc, server, studies):
        print("\nOpen in a browser:")
        print(f"  {server.viewer()}  (all studies)")
        for study in studies:
            print(f"  {server.viewer(study.study_uid)}  ({study.name})")
        print(f"\n{GUIDE}\nLogs: {server.log} and {orthanc.folder / 'orthanc.log'}", flush=True)
        while True:
            server.check()
            time.sleep(0.5)


def prove(folder: Path | None = None, port: int = 8000) -> None:
    """The demo without a person, see `medsa.demo.check`; its folder is a passing one unless given."""
    with ExitStack() as stack:
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="medsa-demo-")))
        orthanc, server, studies = stack.enter_context(running(folder, port))
        check(server.url, orthanc.dicomweb_url, studies)


@contextmanager
def running(folder: Path, port: int) -> Iterator[tuple[Orthanc, Server, list[DemoStudy]]]:
    """Orthanc in `folder` with the demo studies, and the server on `port`, or on a free one when it is taken.

    Raises `OrthancError` with the command that installs it, `ServerError`, and `DemoError` when another demo
    uses `folder`.
    """
    find_orthanc()
    with ExitStack() as stack:
        stack.enter_context(_ends_on_signals())
        folder = folder.resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(_alone(folder))
        print("starting Orthanc", flush=True)
        orthanc = stack.enter_context(Orthanc(folder / "orthanc"))
        studies = demo_studies()
        _fill(orthanc, studies)
        server = Server(
            orthanc.dicomweb_url,
            folder / "server.log",
            port=port if _is_free(port) else 0,
            environment={"MEDSA_DATA": str(folder / "data")},
        )
        if server.port != port:
            print(f"port {port} is taken: the server gets {server.port}")
        print("starting the server", end="" if sys.stdout.isatty() else "\n", flush=True)
        stack.enter_context(server.start(waiting=_waiting))
        print(f"\nOrthanc: {orthanc.dicomweb_url}\nserver:  {server.url}", flush=True)
        yield orthanc, server, studies


def _fill(orthanc: Orthanc, studies: Sequence[DemoStudy]) -> None:
    for study in studies:
        url = f"{orthanc.dicomweb_url}/studies/{study.study_uid}/series/{study.series_uid}/instances"
        answer = httpx.get(url, timeout=30, trust_env=False)
        there = len(answer.json()) if answer.status_code == httpx.codes.OK and answer.content else 0
        if there < len(study.datasets):
            print(f"storing the study '{study.name}'", flush=True)
            stow(orthanc.dicomweb_url, study.datasets)


def _waiting(seconds: float) -> None:
    """The progress line while the server starts; only on a terminal, where it can be written over."""
    if sys.stdout.isatty():
        print(f"\rstarting the server: {seconds:3.0f} s ", end="", flush=True)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold `folder` for one demo at a time: two Orthancs on one database would spoil it."""
    with os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo runs in {folder}: end it, or give this one a --folder") from None
        yield


@contextmanager
def _ends_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does; while it cleans up, further signals wait."""
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
