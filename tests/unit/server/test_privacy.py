"""No id of a patient's images reaches a handler of the log."""

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medsa.server import privacy

UID = "1.2.840.113619.2.55.3.604688119.971.1387297592.1"


@pytest.fixture
def log():
    stream, handler = io.StringIO(), None
    handler = logging.StreamHandler(stream)
    handler.addFilter(privacy.Scrubber())
    logger = logging.getLogger("medsa.test")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, stream
    logger.removeHandler(handler)
    logger.propagate = True


def test_uids_are_shortened_wherever_they_stand(log):
    logger, stream = log
    logger.warning("saved %s => %s", UID, {"image": f"/cache/{UID}.nii.gz"})
    assert UID not in stream.getvalue()
    assert stream.getvalue().count(privacy.short(UID)) == 2


def test_a_traceback_keeps_its_frames_and_loses_its_values(log):
    logger, stream = log
    try:
        try:
            raise ValueError("Doe^John")
        except ValueError as error:
            raise KeyError(UID) from error
    except KeyError:
        logger.exception("failed")
    text = stream.getvalue()
    assert "KeyError" in text
    assert "ValueError" in text
    assert "test_privacy.py" in text
    assert "Doe" not in text
    assert UID not in text


def test_versions_and_addresses_stay_readable():
    line = "torch 2.14.1 on 127.0.0.1:8000 at 12:30:01.5"
    assert privacy.scrubbed(line) == line


def test_logged_addresses_lose_their_query():
    record = logging.LogRecord("uvicorn.access", 20, "", 1, '%s "GET %s"', ("x", "/q?PatientName=Doe"), None)
    privacy.Scrubber().filter(record)
    assert record.getMessage() == 'x "GET /q"'


@given(st.lists(st.integers(0, 10**9), min_size=5, max_size=9))
def test_any_long_uid_is_scrubbed(numbers):
    uid = "1." + ".".join(map(str, numbers))
    assert uid not in privacy.scrubbed(f"series {uid}, study '{uid}'")
