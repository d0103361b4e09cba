"""The DICOMweb client against stores that cut short, drip, break off, refuse and lie, over real HTTP."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import pytest
from monailabel.config import settings

from medsa.demo.studies import abdomen
from medsa.errors import (
    BadInputError,
    ConfigurationError,
    MedsaError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
    TooLargeError,
    UnreadableImageError,
)
from medsa.server import dicomweb
from medsa.server.dicomweb import DicomWeb, check_uid


@contextmanager
def serving(answer):
    """`answer(handler)` on loopback; yields the address and the list of requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append((self.command, self.path, dict(self.headers)))
            answer(self)

        do_POST = do_GET  # noqa: N815 - the base class's name

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", requests
    finally:
        server.shutdown()
        server.server_close()


def send(handler, body=b"", status=200, content_type=dicomweb.JSON):
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def answering(*args, **options):
    return serving(lambda handler: send(handler, *args, **options))


PARTS = "multipart/related; boundary=x"


def series(number):
    return {"0020000E": {"vr": "UI", "Value": [f"1.2.{number}"]}, "00080060": {"vr": "CS", "Value": ["CT"]}}


@pytest.fixture(scope="module")
def part():
    from io import BytesIO

    buffer = BytesIO()
    abdomen((8, 8, 1)).datasets[0].save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("cut", [100, 130, 500])
def test_a_store_that_cuts_its_answers_short_is_asked_for_the_rest(cut):
    matches = [series(number) for number in range(1234)]

    def answer(handler):
        query = parse_qs(urlparse(handler.path).query)
        start, limit = int(query["offset"][0]), min(int(query["limit"][0]), cut)
        send(handler, json.dumps(matches[start : start + limit]).encode())

    with serving(answer) as (url, _):
        found = DicomWeb(url).search("series")
    assert [str(one.SeriesInstanceUID) for one in found] == [f"1.2.{number}" for number in range(1234)]


def test_a_store_that_knows_no_pages_is_not_asked_for_ever():
    body = json.dumps([series(number) for number in range(300)]).encode()
    with answering(body) as (url, requests):
        assert len(DicomWeb(url).search("series")) == 300
    assert len(requests) == 2


def test_nothing_found_may_be_an_empty_answer():
    with answering(status=204) as (url, _):
        assert DicomWeb(url).search("series") == []


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc-1', "abc-1"),
        ('Multipart/Related; boundary="a b"', "a b"),
        ("application/dicom", "forgotten"),
    ],
)
def test_all_objects_of_a_series_arrive_however_the_store_announces_them(part, content_type, boundary):
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\nContent-Length: {len(part)}\r\n\r\n".encode()
    body = b"\r\n" + head + part + b"\r\n" + head + part + f"\r\n--{boundary}--\r\n".encode()
    with answering(body, content_type=content_type) as (url, _):
        datasets = DicomWeb(url).series("1.2", "1.3")
    assert [dataset.pixel_array.shape for dataset in datasets] == [(8, 8), (8, 8)]


def test_a_single_object_needs_no_parts(part):
    with answering(part, content_type="application/dicom") as (url, _):
        assert DicomWeb(url).instance("1.2", "1.3", "1.4").Rows == 8


def test_an_answer_that_breaks_off_is_an_error_and_no_shorter_series(part):
    head = b"--x\r\nContent-Type: application/dicom\r\n\r\n"
    whole = head + part + b"\r\n" + head + part + b"\r\n--x--\r\n"
    for cut in (len(head) + 100, len(whole) - len(part) // 2, len(whole) - 9):
        with (
            serving(lambda h, cut=cut: send(h, whole[:cut], content_type=PARTS)) as (url, _),
            pytest.raises(StoreUnavailableError, match="broke off"),
        ):
            DicomWeb(url).series("1.2", "1.3")


def test_an_object_that_is_no_dicom_is_said_to_be_damaged():
    body = b"--x\r\n\r\nthis is no DICOM\r\n--x--\r\n"
    with (
        answering(body, content_type=PARTS) as (
            url,
            _,
        ),
        pytest.raises(UnreadableImageError, match="damaged"),
    ):
        DicomWeb(url).series("1.2", "1.3")


def test_a_store_that_drips_is_left_after_a_while(monkeypatch):
    monkeypatch.setattr(dicomweb, "_LONGEST", 0.3)

    def drip(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        for _ in range(2000):
            handler.wfile.write(b" ")
            time.sleep(0.01)

    with serving(drip) as (url, _), pytest.raises(StoreUnavailableError, match="too slow"):
        DicomWeb(url).search("series")


def test_a_series_larger_than_memory_is_refused_before_it_fills_it(monkeypatch):
    monkeypatch.setattr(dicomweb, "available_memory", lambda: 3 << 20)
    with (
        answering(bytes(4 << 20)) as (url, _),
        pytest.raises(TooLargeError, match="1 MiB"),
    ):
        DicomWeb(url).series("1.2", "1.3")


@pytest.mark.parametrize(
    ("status", "error", "sentence"),
    [
        (401, StoreError, "login"),
        (403, StoreError, "login"),
        (404, StoreError, "is the URL of --studies right"),
        (302, StoreError, "302"),
        (500, StoreError, "500"),
        (503, StoreUnavailableError, "try again later"),
    ],
)
def test_each_refusal_of_a_search_has_its_sentence(status, error, sentence):
    with (
        answering(b"<html>", status) as (url, _),
        pytest.raises(error, match=sentence),
    ):
        DicomWeb(url).search("series")


def test_a_series_that_is_not_there_is_not_found():
    with answering(status=404) as (url, _), pytest.raises(NotFoundError):
        DicomWeb(url).series("1.2", "1.3")


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}x", b'{"a": 1}', b"[1, 2]", b"\xff\xfe"])
def test_nonsense_is_called_nonsense(body):
    with (
        answering(body) as (url, _),
        pytest.raises(StoreError, match="no DICOM JSON"),
    ):
        DicomWeb(url).search("series")


def test_a_kept_connection_that_died_is_opened_again_for_reading_only():
    def answer(handler):
        send(handler, b"[]")
        handler.close_connection = True  # without telling the client

    with serving(answer) as (url, _):
        web = DicomWeb(url)
        assert [web.search("series") for _ in range(3)] == [[], [], []]


def stow_answer(stored, failed):
    sequence = {"vr": "SQ", "Value": [{}] * stored}
    refused = {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0xA700]}}] * failed}
    return json.dumps({"00081199": sequence, **({"00081198": refused} if failed else {})}).encode()


@pytest.mark.parametrize(
    ("status", "stored", "failed"), [(200, 1, 1), (202, 0, 2), (409, 0, 2), (200, 1, 0), (200, 0, 0)]
)
def test_a_store_that_does_not_take_every_object_is_not_believed(status, stored, failed):
    with (
        answering(stow_answer(stored, failed), status) as (url, _),
        pytest.raises(StoreError, match=r"refused \d of 2 objects"),
    ):
        DicomWeb(url).store(abdomen((8, 8, 2)).datasets)


def test_objects_are_sent_in_batches_and_counted(monkeypatch):
    monkeypatch.setattr(dicomweb, "_MOST_SENT", 1)
    with answering(stow_answer(1, 0)) as (url, requests):
        assert DicomWeb(url).store(abdomen((8, 8, 3)).datasets) == 3
    assert [path for _, path, _ in requests] == ["/dicom-web/studies"] * 3


def test_an_empty_confirmation_is_none():
    with (
        answering(b"") as (url, _),
        pytest.raises(StoreError, match="does not say"),
    ):
        DicomWeb(url).store(abdomen((8, 8, 1)).datasets)


def test_a_login_in_the_address_is_used_and_not_shown():
    with answering(b"[]") as (url, requests):
        web = DicomWeb(url.replace("http://", "http://anna:s3cret@"))
        web.search("series")
    assert "s3cret" not in web.url
    assert requests[0][2]["Authorization"].startswith("Basic ")


def test_prefixes_lead_to_the_services(monkeypatch):
    for name in ("QIDO", "WADO", "STOW"):
        monkeypatch.setattr(settings, f"MONAI_LABEL_{name}_PREFIX", name.lower())
    with answering(b"[]") as (url, requests):
        web = DicomWeb(url)
        web.search("series")
        web.metadata("1.2", "1.3")
        for ask in (lambda: web.series("1.2", "1.3"), lambda: web.store(abdomen((8, 8, 1)).datasets)):
            with pytest.raises(MedsaError):
                ask()
    paths = [path.split("?")[0].removeprefix("/dicom-web/") for _, path, _ in requests]
    expected = [
        "qido/series",
        "wado/studies/1.2/series/1.3/metadata",
        "wado/studies/1.2/series/1.3",
        "stow/studies",
    ]
    assert paths == expected


def test_no_proxy_stands_between_us_and_this_machine(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with answering(b"[]") as (url, _):
        assert DicomWeb(url).search("series") == []


def test_an_address_that_is_none_is_refused_at_the_start():
    with pytest.raises(ConfigurationError, match="no URL"):
        DicomWeb("http://[::bad")


@pytest.mark.parametrize("uid", ["", "1", "1.", "1..2", "1.2a", "1.2/3", "../1.2", "1.2\n", "1." + "2" * 64])
def test_what_is_no_uid_is_refused(uid):
    with pytest.raises(BadInputError, match="no DICOM UID"):
        check_uid(uid)


def test_uids_are_taken():
    assert check_uid("1.2.840.10008") == "1.2.840.10008"
