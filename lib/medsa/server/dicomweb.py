"""A DICOMweb store over HTTP: search, metadata, whole series, storing; every wait has an end."""

from __future__ import annotations

import io
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping

import httpx
import pydicom
from monailabel.config import settings
from pydicom.dataset import Dataset

from medsa.data.read import DAMAGED
from medsa.errors import BadInputError, NotFoundError, StoreError, StoreUnavailableError

JSON = "application/dicom+json"
DICOM = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_UID = re.compile(r"[0-9]+(?:\.[0-9]+){1,31}")
_LONGEST = 300.0
"""Seconds that one answer may take in all, however steadily it drips."""


def check_uid(uid: str, what: str = "image") -> str:
    """`uid` when it is a DICOM UID; raises `BadInputError`."""
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise BadInputError(f"the id of this {what} is no DICOM UID")
    return uid


class DicomWeb:
    """The DICOMweb service at `url`, with MONAI Label's settings for login, prefixes and time-outs.

    Its methods raise `StoreUnavailableError` when the store is down or too slow, `StoreError` when it refuses
    or answers with nonsense, and `NotFoundError`.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
        patience = float(settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)
        connect = min(patience, float(settings.MONAI_LABEL_DICOMWEB_READ_TIMEOUT))
        self._client = httpx.Client(
            auth=(user, password) if user and password else None,
            timeout=httpx.Timeout(patience, connect=connect),
            transport=httpx.HTTPTransport(retries=1),
        )

    def search(self, path: str, filters: Mapping[str, str] | None = None) -> list[Dataset]:
        """QIDO-RS: what matches at `path`, such as "series" or "studies/1.2/series"."""
        body, _ = self._get(self._prefixed(settings.MONAI_LABEL_QIDO_PREFIX, path), JSON, filters)
        return _datasets(body)

    def metadata(self, study: str, series: str) -> list[Dataset]:
        """WADO-RS: the headers of a series, without pixels."""
        path = f"studies/{study}/series/{series}/metadata"
        body, _ = self._get(self._prefixed(settings.MONAI_LABEL_WADO_PREFIX, path), JSON)
        return _datasets(body)

    def series(self, study: str, series: str) -> list[Dataset]:
        """WADO-RS: all instances of a series in the transfer syntax they are stored in."""
        path = self._prefixed(settings.MONAI_LABEL_WADO_PREFIX, f"studies/{study}/series/{series}")
        body, content_type = self._get(path, DICOM)
        try:
            return [pydicom.dcmread(io.BytesIO(part)) for part in _parts(body, content_type)]
        except DAMAGED as error:
            raise StoreError(f"the store sent damaged DICOM ({type(error).__name__})") from None

    def store(self, dataset: Dataset) -> None:
        """STOW-RS one object; raises `StoreError` when the store does not take it."""
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
        boundary = secrets.token_hex(16)
        headers = {
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
            "Accept": JSON,
        }
        url = f"{self.url}/{self._prefixed(settings.MONAI_LABEL_STOW_PREFIX, 'studies')}"
        head, tail = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n", f"\r\n--{boundary}--\r\n"
        content = head.encode() + buffer.getvalue() + tail.encode()
        try:
            answer = self._client.post(url, content=content, headers=headers)
        except httpx.TimeoutException:
            raise StoreUnavailableError(
                "the DICOMweb store did not answer in time; nothing was saved"
            ) from None
        except httpx.HTTPError:
            raise StoreUnavailableError("the DICOMweb store cannot be reached; nothing was saved") from None
        _check_status(answer)
        try:
            said = answer.json()
            failed, stored = said.get("00081198", {}).get("Value"), said.get("00081199", {}).get("Value")
        except (ValueError, AttributeError):
            raise StoreError("the DICOMweb store does not say whether it saved the object") from None
        if failed or not stored:
            raise StoreError("the DICOMweb store refused the object; nothing was saved")

    @staticmethod
    def _prefixed(prefix: str | None, path: str) -> str:
        return f"{prefix}/{path}" if prefix else path

    def _get(self, path: str, accept: str, query: Mapping[str, str] | None = None) -> tuple[bytes, str]:
        """Body and content type of a GET; an empty body stands for no match."""
        deadline = time.monotonic() + _LONGEST
        body = bytearray()
        try:
            url, headers = f"{self.url}/{path}", {"Accept": accept}
            with self._client.stream("GET", url, params=query, headers=headers) as answer:
                if answer.status_code >= httpx.codes.BAD_REQUEST:
                    answer.read()
                _check_status(answer)
                for chunk in answer.iter_bytes(1 << 20):
                    body += chunk
                    if time.monotonic() > deadline:
                        raise StoreUnavailableError("the DICOMweb store is too slow: try again later")
                return bytes(body), answer.headers.get("content-type", "")
        except httpx.TimeoutException:
            raise StoreUnavailableError("the DICOMweb store does not answer: try again later") from None
        except httpx.HTTPError:
            raise StoreUnavailableError("the DICOMweb store cannot be reached: is it running?") from None


def _check_status(answer: httpx.Response) -> None:
    status = answer.status_code
    if status < httpx.codes.MULTIPLE_CHOICES:
        return
    if status == httpx.codes.NOT_FOUND:
        raise NotFoundError("the DICOMweb store does not have this image (any more)")
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        raise StoreError("the DICOMweb store refuses the server's login: check its username and password")
    if status in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT, httpx.codes.BAD_GATEWAY):
        raise StoreUnavailableError("the DICOMweb store is not available: try again later")
    raise StoreError(f"the DICOMweb store answers with status {status}: is the URL of --studies right?")


def _datasets(body: bytes) -> list[Dataset]:
    if not body.strip():
        return []
    try:
        return [Dataset.from_json(item, lambda _tag, _vr, _uri: None) for item in json.loads(body)]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreError("the DICOMweb store answers with something that is no DICOM JSON") from None


def _parts(body: bytes, content_type: str) -> Iterator[memoryview]:
    """The parts of a multipart body, without copies; the boundary is read from the body's first line."""
    if not content_type.lower().startswith("multipart/related"):
        raise StoreError("the DICOMweb store does not send DICOM as multipart/related")
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    if found is None:
        raise StoreError("the DICOMweb store names no boundary for its multipart answer")
    mark = b"--" + found.group(1).encode()
    view = memoryview(body)
    start = body.find(mark)
    while start >= 0 and not body.startswith(b"--", start + len(mark)):
        content = body.find(b"\r\n\r\n", start) + 4
        end = body.find(b"\r\n" + mark, content)
        if content < 4 or end < 0:
            raise StoreError("the DICOMweb store's answer ends too early")
        yield view[content:end]
        start = end + 2
