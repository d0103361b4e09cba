"""The server as a person starts it, with `monailabel start_server`, as a child that ends with us."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx

from medsa.demo.orthanc import free_port
from medsa.errors import MedsaError

ROOT = Path(__file__).resolve().parents[3]
COMMAND = Path(sys.executable).parent / "monailabel"
LAST_LINES = 12


class ServerError(MedsaError):
    """The server does not start, or has ended."""

    status = 503


class Server:
    """MONAI Label with our app over `studies` (a DICOMweb URL or a folder), on 127.0.0.1.

    `port` 0 takes a free one. `conf` are `--conf` pairs, `environment` is added to ours. The log goes to the
    file `log`. Use as a context manager, from a thread that lives as long as the server is wanted: the kernel
    ends the server with the thread that started it. Raises `ServerError` with the log's last lines.
    """

    def __init__(
        self,
        studies: str,
        log: Path,
        *,
        port: int = 0,
        conf: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.studies, self.log = studies, log
        self.port = port or free_port()
        self.conf, self.environment = dict(conf or {}), dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server's root, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def viewer(self, study_uid: str = "") -> str:
        """The address of OHIF: its list of studies, or one study with medsa's panel."""
        return f"{self.url}/ohif/" + (f"medsa?StudyInstanceUIDs={study_uid}" if study_uid else "")

    def start(self, *, timeout: float = 180, waiting: Callable[[float], None] = lambda _: None) -> Server:
        """Start and wait until /info/ answers; `waiting` is called with the seconds gone by."""
        command = [str(COMMAND), "start_server", "--app", "apps/medsa", "--studies", self.studies]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        for name, value in self.conf.items():
            command += ["--conf", name, value]
        if setpriv := shutil.which("setpriv"):
            command = [setpriv, "--pdeathsig", "TERM", *command]
        path = f"{COMMAND.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PATH": path, **self.environment},
                start_new_session=True,
            )
        started = time.monotonic()
        try:
            while not self._answers():
                gone = time.monotonic() - started
                self.check()
                if gone > timeout:
                    raise ServerError(
                        f"the server did not answer within {timeout:.0f} s\n{self._last_lines()}"
                    )
                waiting(gone)
                time.sleep(0.2)
        except BaseException:
            self.stop()
            raise
        return self

    def check(self) -> None:
        """Raise `ServerError` when the server has ended."""
        if self._process is None or (status := self._process.poll()) is None:
            return
        raise ServerError(
            f"the server ended with status {status}; its log {self.log} says:\n{self._last_lines()}"
        )

    def stop(self) -> None:
        """End it and what it started."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> Server:
        return self if self._process else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/info/", timeout=5, trust_env=False).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-LAST_LINES:])
