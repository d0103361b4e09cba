"""Puts medsa's routes and doors into the FastAPI application of a starting MONAI Label server."""

from __future__ import annotations

import logging
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from monailabel.config import settings

from medsa.server import auth, doors, privacy, proxy, scratch
from medsa.server.platform import KEPT_ROUTES
from medsa.server.routes import (
    activelearning,
    annotate,
    background,
    datastore,
    infer,
    info,
    login,
    model,
    ohif,
    operate,
    session,
    status,
)

if TYPE_CHECKING:
    from medsa.server.app import MedsaApp

logger = logging.getLogger(__name__)


def install(server: FastAPI, app: MedsaApp) -> None:
    """Replace what `server` does; called while it starts, before the first request.

    Stock routes are taken out rather than put behind ours: a method that we do not offer must not be answered
    by them. Temporary files of anything in this process go to its private folder.
    """
    privacy.install()
    tempfile.tempdir = str(scratch.folder())
    kept = [route for route in server.router.routes if getattr(route, "path", None) in KEPT_ROUTES]
    server.router.routes[:] = kept
    parts = [info, status, annotate, infer, datastore, session, model, activelearning, background]
    parts += [operate, ohif, proxy]
    for part in [*parts, login] if auth.enabled() else parts:
        server.include_router(part.router, prefix=settings.MONAI_LABEL_API_STR)
    server.openapi_schema = None
    server.state.medsa = app
    with suppress(OSError):
        (Path(settings.MONAI_LABEL_APP_DIR) / "logs").chmod(0o700)
    doors.install(server)
    http = _uvicorn()
    _take_over(http)
    _warn(http)


def _uvicorn() -> uvicorn.Server | None:
    """The server that is starting and has not opened its port yet; it holds the signals while it runs."""
    holder = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return holder if isinstance(holder, uvicorn.Server) else None


def _take_over(http: uvicorn.Server | None) -> None:
    """Keep the port to this machine unless somebody chose a host; end on SIGTERM as on any other end.

    Uvicorn lets SIGTERM kill the process in the end, so that nothing registered for its exit would run.
    """
    if http is None:
        return
    if doors.this_machine_only():
        http.config.host = "127.0.0.1"

    def end(_signal: int, _frame: FrameType | None) -> None:
        http.should_exit = True

    signal.signal(signal.SIGTERM, end)


def _warn(http: uvicorn.Server | None) -> None:
    if auth.enabled():
        return
    if doors.this_machine_only():
        logger.warning(
            "no --host was given and authentication is off: other machines are not served. Enable "
            "authentication, or open the server to the network with --host 0.0.0.0"
        )
    elif http is not None and not auth.is_loopback(http.config.host):
        logger.warning(
            "ATTENTION: the network is served WITHOUT authentication: whoever reaches this port sees it all"
        )
