"""A DICOMweb store over HTTP: search, headers, whole series, storing; every wait has an end."""

from __future__ import annotations

import io
import json
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import httpx
import pydicom
from monailabel.config import settings
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medsa.data.limits import available_memory
from medsa.data.read import DAMAGED
from medsa.errors import (
    BadInputError,
    ConfigurationError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
    TooLargeError,
    UnreadableImageError,
)

JSON = "application/dicom+json"
DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
Query = Mapping[str, str | Sequence[str]]
"""Parameters of a search; several values of one are several parameters."""
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){1,31}")
_LONGEST = 300.0
"""Seconds that one answer may take in all, however steadily it drips."""
_PAGE = 500
"""Matches asked for at a time: stores cut long answers short, each at a length of its own."""
_FEWEST = 100
"""A page shorter than this is the last one: no store cuts its answers shorter."""
_HERE = ("127.0.0.1", "localhost", "::1")
_MOST_SENT = 48 << 20
"""Bytes that one request stores at most."""


def check_uid(uid: str, what: str = "image") -> str:
    """`uid` when it is a DICOM UID; raises `BadInputError`."""
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise BadInputError(f"the id of this {what} is no DICOM UID")
    return uid


class DicomWeb:
    """The DICOMweb service at `url`, with MONAI Label's settings for login, prefixes and time-outs.

    A login in the address itself, https://user:password@..., is used and not shown again. Raises
    `ConfigurationError` for what is no address.
    Its methods raise `StoreUnavailableError` when the store is down or too slow, `StoreError` when it refuses
    or answers with nonsense, and `NotFoundError`.
    """

    def __init__(self, url: str, auth: tuple[str, str] | None = None) -> None:
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL:
            raise ConfigurationError("the address of the DICOMweb store is no URL") from None
        self.url = str(address.copy_with(username=None, password=None)).rstrip("/")
        user = address.username or settings.MONAI_LABEL_DICOMWEB_USERNAME
        password = address.password or settings.MONAI_LABEL_DICOMWEB_PASSWORD
        patience = float(settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)
        connect = min(patience, float(settings.MONAI_LABEL_DICOMWEB_READ_TIMEOUT))
        self._client = httpx.Client(
            trust_env=address.host not in _HERE,  # no proxy on the way to this machine
            auth=auth or ((user, password) if user and password else None),
            timeout=httpx.Timeout(patience, connect=connect),
        )

    def search(self, path: str, filters: Query | None = None) -> list[Dataset]:
        """QIDO-RS: all that matches at `path`, such as "series" or "studies/1.2/series", page by page."""
        url = self._url(settings.MONAI_LABEL_QIDO_PREFIX, path)
        found: dict[str, Dataset] = {}
        while True:
            query: Query = {**(filters or {}), "limit": str(_PAGE), "offset": str(len(found))}
            try:
                body, _ = self._get(url, JSON, query)
            except NotFoundError:
                raise StoreError(
                    "there is no DICOMweb search at this address: is the URL of --studies right?"
                ) from None
            page = {repr(_identity(one)): one for one in _datasets(body)}
            new = page.keys() - found.keys()
            found.update(page)
            if len(page) < _FEWEST or not new:  # the last page, or a store that always sends all
                return list(found.values())

    def metadata(self, study: str, series: str, without: Sequence[str] = ()) -> list[Dataset]:
        """WADO-RS: the headers of a series, without pixels and without the elements of some tags."""
        url = self._url(settings.MONAI_LABEL_WADO_PREFIX, f"studies/{study}/series/{series}/metadata")
        return _datasets(self._get(url, JSON)[0], without)

    def series(self, study: str, series: str) -> list[Dataset]:
        """WADO-RS: all instances of a series, in the transfer syntax they are stored in."""
        return self._instances(f"studies/{study}/series/{series}")

    def instance(self, study: str, series: str, instance: str) -> Dataset:
        """WADO-RS: one object."""
        return self._instances(f"studies/{study}/series/{series}/instances/{instance}")[0]

    def store(self, datasets: Iterable[Dataset]) -> int:
        """STOW-RS: how many objects the store confirmed; raises `StoreError` when it does not take one."""
        parts: list[bytes] = []
        stored = 0
        for dataset in datasets:
            buffer = io.BytesIO()
            pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
            parts.append(buffer.getvalue())
            if sum(map(len, parts)) > _MOST_SENT:
                stored += self._store(parts)
                parts = []
        return stored + (self._store(parts) if parts else 0)

    def _store(self, parts: Sequence[bytes]) -> int:
        boundary = secrets.token_hex(16)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": JSON,
        }
        opening = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        content = b"".join([*(opening + part + b"\r\n" for part in parts), f"--{boundary}--\r\n".encode()])
        url = self._url(settings.MONAI_LABEL_STOW_PREFIX, "studies")
        try:
            answer = self._client.post(url, content=content, headers=headers)
        except httpx.TimeoutException:
            raise StoreUnavailableError(
                "the DICOMweb store did not confirm in time that it saved this: look there, then try again"
            ) from None
        except httpx.HTTPError:
            raise StoreUnavailableError("the DICOMweb store cannot be reached: is it running?") from None
        if answer.status_code != httpx.codes.CONFLICT:
            _check_status(answer.status_code)
        try:
            said = answer.json()
            failed = said.get("00081198", {}).get("Value") or []
            stored = said.get("00081199", {}).get("Value") or []
        except (ValueError, AttributeError):
            raise StoreError("the DICOMweb store does not say whether it saved this") from None
        if failed or len(stored) < len(parts):
            missing = max(len(failed), len(parts) - len(stored))
            raise StoreError(f"the DICOMweb store refused {missing} of {len(parts)} objects")
        return len(parts)

    def _instances(self, path: str) -> list[Dataset]:
        body, content_type = self._get(self._url(settings.MONAI_LABEL_WADO_PREFIX, path), DICOM)
        try:
            datasets: list[Dataset] = [
                pydicom.dcmread(io.BytesIO(part)) for part in _parts(body, content_type)
            ]
        except (InvalidDicomError, *DAMAGED) as error:
            raise UnreadableImageError(
                f"the DICOMweb store holds a damaged object here ({type(error).__name__})"
            ) from None
        if not datasets:
            raise NotFoundError("the DICOMweb store does not have this image (any more)")
        return datasets

    def _url(self, prefix: str | None, path: str) -> str:
        return "/".join([self.url, *([prefix.strip("/")] if prefix else []), path])

    def _get(self, url: str, accept: str, query: Query | None = None) -> tuple[bytearray, str]:
        """Body and content type of a GET, asked again once when a kept connection turns out to be dead."""
        try:
            try:
                return self._read(url, accept, query)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                return self._read(url, accept, query)
        except httpx.TimeoutException:
            raise StoreUnavailableError("the DICOMweb store does not answer: try again later") from None
        except httpx.HTTPError:
            raise StoreUnavailableError("the DICOMweb store cannot be reached: is it running?") from None

    def _read(self, url: str, accept: str, query: Query | None) -> tuple[bytearray, str]:
        deadline, room = time.monotonic() + _LONGEST, available_memory() // 3
        body = bytearray()
        with self._client.stream("GET", url, params=query, headers={"Accept": accept}) as answer:
            _check_status(answer.status_code)
            for chunk in answer.iter_bytes():
                body += chunk
                if len(body) > room:
                    raise TooLargeError(f"this series takes more than the {room >> 20} MiB there are for it")
                if time.monotonic() > deadline:
                    raise StoreUnavailableError("the DICOMweb store is too slow: try again later")
        return body, answer.headers.get("content-type", "")


def _check_status(status: int) -> None:
    if status < httpx.codes.MULTIPLE_CHOICES:
        return
    if status == httpx.codes.NOT_FOUND:
        raise NotFoundError("the DICOMweb store does not have this image (any more)")
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise StoreError(
            "the DICOMweb store refuses the server's login: set MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD"
        )
    if status in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT, httpx.codes.BAD_GATEWAY):
        raise StoreUnavailableError("the DICOMweb store is not available: try again later")
    raise StoreError(f"the DICOMweb store answers with status {status}: is the URL of --studies right?")


def _identity(one: Dataset) -> tuple[str, ...]:
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    return tuple(str(one.get(keyword, "")) for keyword in uids)


def _datasets(body: bytes | bytearray, without: Sequence[str] = ()) -> list[Dataset]:
    if not body.strip():
        return []
    try:
        items = [{tag: item[tag] for tag in item if tag not in without} for item in json.loads(body)]
        return [Dataset.from_json(item, lambda _tag, _vr, _uri: None) for item in items]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError("the DICOMweb store answers with something that is no DICOM JSON") from None


def _parts(body: bytearray, content_type: str) -> Iterator[memoryview]:
    """The objects in an answer, without copies: the parts of a multipart body, or the one that it is.

    Some stores forget to say that they send several parts; then the boundary is the body's first line.
    """
    view = memoryview(body)
    named = re.search(r'boundary="?([^";]+)"?', content_type)
    first = bytes(body[:200]).lstrip(b"\r\n").split(b"\r\n", 1)[0]
    if not named and not first.startswith(b"--"):
        if body:
            yield view
        return
    mark = b"--" + named.group(1).encode() if named else first
    start = body.find(mark)
    while start >= 0 and not body.startswith(b"--", start + len(mark)):
        content = body.find(b"\r\n\r\n", start) + 4
        end = body.find(b"\r\n" + mark, content)
        if content < 4 or end < 0:
            raise StoreUnavailableError("the DICOMweb store's answer broke off: try again")
        yield view[content:end]
        start = end + 2
