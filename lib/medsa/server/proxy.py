"""/proxy/dicom/: the viewer's way to the DICOMweb store, with the server's login and no further.

Only DICOMweb's own resources (PS3.18, sections 10.4 to 10.6) pass, by an allow-list on the decoded path; what
is sent to the store is built from that path alone. What the viewer stores must be a SEG of an image there.
"""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from email.parser import BytesParser
from email.policy import HTTP
from functools import cache
from io import BytesIO

import httpx
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from monailabel.config import settings
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage
from starlette.concurrency import run_in_threadpool

from medsa.data.read import DAMAGED
from medsa.data.seg import read_seg
from medsa.errors import (
    BadInputError,
    LabelMismatchError,
    MedsaError,
    NotFoundError,
    StoreUnavailableError,
    TooLargeError,
)
from medsa.server.app import MedsaApp
from medsa.server.routes.common import Annotator, AnyUser, App

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/proxy/dicom", include_in_schema=False)

MOST_STORED = 256 << 20

_UID = r"[0-9]+(?:\.[0-9]+){1,31}"
_VIEWS = "metadata|rendered|thumbnail"
_BULK = r"bulk(?:data)?(?:/[0-9A-Za-z]{1,16}){1,32}"
_READABLE = re.compile(
    rf"studies|series|instances"
    rf"|studies/{_UID}(?:/(?:series|instances|{_VIEWS}|{_BULK}))?"
    rf"|studies/{_UID}/series/{_UID}(?:/(?:instances|{_VIEWS}|{_BULK}))?"
    rf"|studies/{_UID}/series/{_UID}/instances/{_UID}"
    rf"(?:/(?:{_VIEWS}|frames/[0-9,]{{1,4096}}(?:/(?:rendered|thumbnail))?|{_BULK}))?"
)
_STORABLE = re.compile(rf"studies(?:/{_UID})?")
_SEARCH = re.compile(
    rf"studies|series|instances|studies/{_UID}/(?:series|instances)|.*/series/{_UID}/instances"
)

_SENT_ON = ("accept", "if-none-match", "if-modified-since", "range")
_DESCRIBING = ("content-type", "content-encoding", "content-length", "content-range")
_GIVEN_BACK = (*_DESCRIBING, "accept-ranges", "etag", "last-modified", "cache-control")


class StoreTimeoutError(StoreUnavailableError):
    """The store took the request and did not answer in time."""

    status = 504


@cache
def _client() -> httpx.AsyncClient:
    """One connection pool a process; it follows no redirect out of the store and asks no proxy."""
    username, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    patience = float(settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)
    return httpx.AsyncClient(
        auth=(username, password) if username and password else None,
        timeout=httpx.Timeout(patience, connect=min(patience, settings.MONAI_LABEL_DICOMWEB_READ_TIMEOUT)),
        limits=httpx.Limits(max_connections=64, max_keepalive_connections=16),
        follow_redirects=False,
        trust_env=False,
    )


@router.get("/{path:path}")
async def get(request: Request, app: App, _user: AnyUser, path: str) -> Response:
    """A search, metadata, frames: streamed as the store sends them."""
    path = _resource(path)
    if not _READABLE.fullmatch(path):
        raise NotFoundError("this is no DICOMweb resource that may be asked for")
    headers = {name: request.headers[name] for name in _SENT_ON if name in request.headers}
    headers["accept-encoding"] = request.headers.get("accept-encoding", "identity")
    store = _store(app)
    service = "QIDO" if _SEARCH.fullmatch(path) else "WADO"
    try:
        url = httpx.URL(_address(store, service, path), query=request.scope["query_string"] or None)
    except (httpx.InvalidURL, UnicodeDecodeError):
        raise BadInputError("the query cannot be read") from None
    answer = await _ask(_client().build_request("GET", url, headers=headers))
    if "json" not in answer.headers.get("content-type", ""):
        return StreamingResponse(_chunks(answer), answer.status_code, _given_back(answer))
    try:
        content = await answer.aread()
    except httpx.HTTPError as error:
        raise _trouble(error) from None
    finally:
        await answer.aclose()
    here = f"{request.base_url}{settings.MONAI_LABEL_API_STR.lstrip('/')}proxy/dicom/wado"
    headers = {name: value for name, value in _given_back(answer).items() if name == "content-type"}
    return Response(
        content.replace(_without_login(store).encode(), here.encode()), answer.status_code, headers
    )


@router.post("/{path:path}")
async def post(request: Request, app: App, _user: Annotator, path: str) -> Response:
    """What the viewer stores: checked as any label is, then stored as it came."""
    path = _resource(path)
    if not _STORABLE.fullmatch(path):
        raise NotFoundError("nothing can be stored at this address")
    kind = request.headers.get("content-type", "")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_STORED:
            raise TooLargeError(f"at most {MOST_STORED >> 20} MiB are stored at once")
    objects = await run_in_threadpool(_checked, app, kind, bytes(body))
    headers = {"content-type": kind, "accept": request.headers.get("accept", "application/dicom+json")}
    url = _address(_store(app), "STOW", path)
    answer = await _ask(_client().build_request("POST", url, headers=headers, content=bytes(body)))
    try:
        content = await answer.aread()
    except httpx.HTTPError as error:
        raise _trouble(error) from None
    finally:
        await answer.aclose()
    app.store.refresh()
    for series, label in objects:
        await run_in_threadpool(app.on_save_label, series, label)
    kind = answer.headers.get("content-type", "application/dicom+json")
    return Response(content, answer.status_code, {"content-type": kind})


def _resource(path: str) -> str:
    """The path behind the services' names, which some viewers mix up: what a path asks for decides."""
    service, _, rest = path.partition("/")
    return rest if service in ("qido", "wado", "stow") else path


def _store(app: MedsaApp) -> str:
    if app.store_is_local:
        raise NotFoundError("this server has a folder of images and no DICOMweb store behind it")
    return str(app.studies).rstrip("/")


def _address(store: str, service: str, path: str) -> str:
    prefix = getattr(settings, f"MONAI_LABEL_{service}_PREFIX") or ""
    return "/".join(part for part in (store, prefix.strip("/"), path) if part)


def _without_login(store: str) -> str:
    return str(httpx.URL(store).copy_with(userinfo=b""))


async def _ask(request: httpx.Request) -> httpx.Response:
    try:
        answer = await _client().send(request, stream=True)
    except httpx.HTTPError as error:
        raise _trouble(error) from None
    if (answer.is_redirect and answer.status_code != 304) or answer.status_code in (401, 403, 407):
        await answer.aclose()
        raise StoreUnavailableError("the DICOM store refuses this server's own login, or sends it elsewhere")
    if answer.is_error:
        await answer.aclose()
        status = answer.status_code if answer.is_client_error else 502
        raise HTTPException(status, f"the DICOM store answers {answer.status_code} to this request")
    return answer


def _trouble(error: httpx.HTTPError) -> MedsaError:
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return StoreTimeoutError("the DICOM store takes too long to answer; try again in a minute")
    return StoreUnavailableError("the DICOM store does not answer; is it running?")


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        logger.warning("the DICOM store broke off an answer")
        raise
    finally:
        await answer.aclose()


def _given_back(answer: httpx.Response) -> dict[str, str]:
    return {name: answer.headers[name] for name in _GIVEN_BACK if name in answer.headers}


def _checked(app: MedsaApp, content_type: str, body: bytes) -> list[tuple[str, str]]:
    """(series, SEG instance) of each; raises `BadInputError`, `LabelMismatchError`, `NotFoundError`."""
    objects = []
    for part in _parts(content_type, body):
        try:
            dataset = dcmread(BytesIO(part))
        except (InvalidDicomError, *DAMAGED):
            raise BadInputError("what was sent is not DICOM, or damaged") from None
        objects.append((_check_seg(app, dataset), str(dataset.SOPInstanceUID)))
    if not objects:
        raise BadInputError("there is nothing to store: send DICOM SEG objects as multipart/related")
    return objects


def _check_seg(app: MedsaApp, dataset: Dataset) -> str:
    if dataset.get("SOPClassUID") != SegmentationStorage:
        raise BadInputError("only segmentations (DICOM SEG) are stored through this server")
    series = [
        str(item.get("SeriesInstanceUID", "")) for item in dataset.get("ReferencedSeriesSequence") or []
    ]
    if len(series) != 1:
        raise LabelMismatchError("the segmentation must refer to one series, that of its image")
    volume = app.store.volume(series[0])
    for name in ("StudyInstanceUID", "PatientID"):
        if str(dataset.get(name) or "") != str(volume.headers[0].get(name) or ""):
            raise LabelMismatchError("the segmentation belongs to another study or patient than its image")
    mask, _ = read_seg(dataset, volume)
    if not mask.any():
        raise LabelMismatchError("the segmentation is empty: draw something before saving it")
    return series[0]


def _parts(content_type: str, body: bytes) -> list[bytes]:
    if not content_type.lower().startswith("multipart/related"):
        raise BadInputError("send DICOM objects as multipart/related; type=application/dicom")
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    boundary = BytesParser(policy=HTTP).parsebytes(head, headersonly=True).get_boundary()
    if not boundary:
        raise BadInputError("the multipart request names no boundary")
    parts = []
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary.encode())[1:]:
        if part.startswith(b"--"):
            break
        _, found, content = part.partition(b"\r\n\r\n")
        if found:
            parts.append(content)
    return parts
