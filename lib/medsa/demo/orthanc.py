"""Debian's Orthanc with its DICOMweb plugin, in a folder of its own, on loopback, gone when we are gone."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from medsa.errors import MedsaError

INSTALL = "sudo apt-get install orthanc orthanc-dicomweb"
PROGRAMS = (Path("/usr/sbin/Orthanc"), Path("/usr/local/sbin/Orthanc"))
PLUGINS = (
    Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"),
    Path("/usr/local/share/orthanc/plugins/libOrthancDicomWeb.so"),
)
ATTEMPTS = 5


class OrthancError(MedsaError):
    """Orthanc is missing, or does not start."""

    status = 503


def find_orthanc() -> tuple[Path, Path]:
    """The program and its DICOMweb plugin; raises `OrthancError` with the command that installs them."""
    found = shutil.which("Orthanc")
    program = Path(found) if found else next((path for path in PROGRAMS if path.is_file()), None)
    plugin = next((path for path in PLUGINS if path.is_file()), None)
    if program is None or plugin is None:
        missing = "Orthanc" if program is None else "Orthanc's DICOMweb plugin"
        raise OrthancError(f"{missing} is not installed; type: {INSTALL}")
    return program, plugin


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Orthanc:
    """An Orthanc on `folder` (made with mode 0700); what was stored there before is there again.

    Use as a context manager, from a thread that lives as long as the server is wanted: the kernel ends
    Orthanc with the thread that started it, however that one ends. Requests that do not come from this
    machine are refused by Orthanc itself (it cannot be told to bind to loopback alone); its DICOM port stays
    shut.
    `port` 0 takes a free one. With `user` and `password` every request needs HTTP basic authentication.
    The log is `folder/orthanc.log`.
    Raises `OrthancError` when it is missing or does not answer within `timeout` seconds.
    """

    def __init__(
        self, folder: Path, *, port: int = 0, user: str = "", password: str = "", timeout: float = 30.0
    ) -> None:
        self.folder = Path(folder).resolve()
        self.auth = (user, password) if user else None
        self._wanted_port = port
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._name = f"medsa {uuid.uuid4().hex[:8]}"
        self.port = 0

    @property
    def url(self) -> str:
        """Where Orthanc's own pages and private API are."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def dicomweb_url(self) -> str:
        """The root of QIDO-RS, WADO-RS and STOW-RS."""
        return f"{self.url}/dicom-web"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> Orthanc:
        """Start and wait until /dicom-web answers."""
        if self._process:
            return self
        program, plugin = find_orthanc()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        for attempt in range(ATTEMPTS):
            self.port = self._wanted_port or free_port()
            self._launch(program, plugin)
            if self._wait():
                return self
            self.stop()
            if self._wanted_port or attempt == ATTEMPTS - 1 or not self._port_was_taken():
                break
        raise OrthancError(
            f"Orthanc does not start on port {self.port}; its log is {self.folder / 'orthanc.log'}"
        )

    def stop(self) -> None:
        """End it; what was stored is on disk already."""
        process, self._process = self._process, None
        if process:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=10)
        if self._log:
            self._log.close()
            self._log = None

    def __enter__(self) -> Orthanc:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, program: Path, plugin: Path) -> None:
        path, log = self.folder / "orthanc.json", self.folder / "orthanc.log"
        path.touch(mode=0o600)
        log.touch(mode=0o600)
        path.write_text(json.dumps(self._settings(plugin), indent=1), "utf-8")
        command = [str(program), str(path)]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "TERM", *command]
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            umask=0o077,
            start_new_session=True,
        )

    def _settings(self, plugin: Path) -> dict[str, object]:
        database = str(self.folder / "database")
        return {
            "Name": self._name,
            "StorageDirectory": database,
            "IndexDirectory": database,
            "TemporaryDirectory": str(self.folder),
            "Plugins": [str(plugin)],
            "HttpPort": self.port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": self.auth is not None,
            "RegisteredUsers": dict([self.auth]) if self.auth else {},
            "DicomServerEnabled": False,
            "WebDavEnabled": False,
            "OverwriteInstances": False,
            "StorageCompression": False,
            "KeepAlive": True,
            "TcpNoDelay": True,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": False, "Ssl": False},
        }

    def _wait(self) -> bool:
        deadline = time.monotonic() + self._timeout
        while self._process and self._process.poll() is None and time.monotonic() < deadline:
            try:
                system = self._get(f"{self.url}/system")
                if system.is_success and system.json()["Name"] == self._name:
                    return self._get(f"{self.dicomweb_url}/studies?limit=1").is_success
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        return False

    def _get(self, url: str) -> httpx.Response:
        return httpx.get(url, auth=self.auth, timeout=5, trust_env=False)

    def _port_was_taken(self) -> bool:
        return "already in use" in (self.folder / "orthanc.log").read_text("utf-8", errors="replace")
