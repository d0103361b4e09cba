"""What every request passes before a route sees it: place, origin, size, identity; no error gets past it."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelException,
)
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsa.errors import MedsaError, TooLargeError
from medsa.server import auth, privacy

logger = logging.getLogger(__name__)

UPLOAD_BYTES = 2 << 30
OTHER_BYTES = 8 << 20
_OPEN_PATHS = ("/auth", "/auth/", "/auth/token", "/favicon.ico")
_OPEN_FOLDERS = ("/ohif/", "/static/")
_NO_MEMORY = TooLargeError(
    "the server has not enough memory left for this image: try again, or a smaller one"
)


def origins() -> list[str]:
    """The other origins that MONAI_LABEL_CORS_ORIGINS lets in, as browsers write them; none by default."""
    return [str(origin).rstrip("/") for origin in settings.MONAI_LABEL_CORS_ORIGINS or []]


def host_was_chosen(arguments: list[str]) -> bool:
    """True when the command that started the server names a host (MONAI Label's default is every address)."""
    return "start_server" not in arguments or any(
        argument.startswith(("--host", "--ho", "-i")) for argument in arguments
    )


def install(app: FastAPI) -> None:
    """Give `app` our middleware and error answers in place of the stock ones."""
    app.user_middleware[:] = [Middleware(Door, this_machine_only=this_machine_only())]
    if origins():
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins(),
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )
        app.user_middleware.insert(0, cors)
    for kind in (MedsaError, MONAILabelException, RequestValidationError, StarletteHTTPException):
        app.add_exception_handler(kind, _answer)
    app.middleware_stack = None


def this_machine_only() -> bool:
    """Without authentication, and without a host that somebody chose, the network is not served."""
    return not auth.enabled() and not host_was_chosen(sys.argv[1:])


class Door:
    """ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, *, this_machine_only: bool) -> None:
        self.app = app
        self.this_machine_only = this_machine_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-content-type-options", b"nosniff"))
            await send(message)

        try:
            scope.setdefault("state", {})["user"] = await self._admit(scope)
            await self.app(scope, _limited(scope, receive), watched_send)
        except MedsaError as error:
            await sentence(error)(scope, receive, watched_send)
        except MemoryError:
            await sentence(_NO_MEMORY)(scope, receive, watched_send)
        except Exception as error:  # noqa: BLE001 - the last door: nothing of it may reach the client
            number = secrets.token_hex(4)
            logger.error(f"error {number} in {scope['method']}\n{privacy.frames(error)}")
            if not started:
                detail = f"something went wrong in the server; its log tells more under {number}"
                await JSONResponse({"detail": detail}, 500)(scope, receive, watched_send)

    async def _admit(self, scope: Scope) -> auth.User:
        headers, client = Headers(scope=scope), scope.get("client")
        host = client[0] if client else None
        if self.this_machine_only and not auth.is_loopback(host):
            raise auth.ForbiddenError(
                "this server runs without authentication and answers its own machine only; start it with "
                "MONAI_LABEL_AUTH_ENABLE, or open it to the network with --host 0.0.0.0"
            )
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            _check_origin(headers)
        if not auth.enabled():
            if auth.is_loopback(host):
                _check_name(headers.get("host", ""))
            return auth.without_authentication(host)
        path = scope["path"].removeprefix(settings.MONAI_LABEL_API_STR)
        if scope["method"] == "OPTIONS" or path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS):
            return auth.User("", -1)
        return await run_in_threadpool(auth.from_header, headers.get("authorization"))


def _check_name(name: str) -> None:
    """A browser on this machine must have called the server by this machine's name.

    Else a page of another site, whose name suddenly leads to 127.0.0.1, would read what it likes.
    """
    bare = name.rpartition(":")[0] if name.rpartition(":")[2].isdigit() else name
    known = auth.is_loopback(bare.strip("[]").lower()) or {f"http://{name}", f"https://{name}"} & set(
        origins()
    )
    if name and not known:
        raise auth.ForbiddenError(
            "without authentication this server answers to localhost only; MONAI_LABEL_CORS_ORIGINS may name "
            "the address of a reverse proxy"
        )


def _check_origin(headers: Headers) -> None:
    """A web page of another site must not act through the browser of somebody who may."""
    origin = headers.get("origin")
    if origin is None or origin in origins():
        return
    own = {headers.get("host"), headers.get("x-forwarded-host")}
    if origin.partition("://")[2] not in own - {None, ""}:
        raise auth.ForbiddenError(
            "requests from pages of another address are refused; MONAI_LABEL_CORS_ORIGINS may name it"
        )


def _limited(scope: Scope, receive: Receive) -> Receive:
    """`receive` that ends with 413 when the body is longer than its kind may be."""
    headers = Headers(scope=scope)
    upload = headers.get("content-type", "").startswith("multipart/")
    limit = UPLOAD_BYTES if upload else OTHER_BYTES
    length = headers.get("content-length", "")
    refused = HTTPException(413, f"the request is too large: at most {limit >> 20} MiB are taken")
    left = limit

    async def limited() -> MutableMapping[str, Any]:
        nonlocal left
        if length.isdigit() and int(length) > limit:
            raise refused
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise refused
        return message

    return limited


def sentence(error: Exception) -> JSONResponse:
    """The answer to an error somebody can act on: its status and `{"detail": sentence}`."""
    headers: Mapping[str, str] | None = None
    match error:
        case MedsaError():
            status, detail = error.status, str(error)
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        case ImageNotFoundException() | LabelNotFoundException():
            status, detail = 404, "there is no such image or label in the datastore"
        case MONAILabelException():
            status, detail = 400, str(error.msg)
        case RequestValidationError():
            status = 422
            detail = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        case StarletteHTTPException():
            status, detail, headers = error.status_code, str(error.detail), error.headers
        case _:
            raise error
    return JSONResponse({"detail": detail}, status, headers)


async def _answer(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - FastAPI's signature
    return sentence(error)
