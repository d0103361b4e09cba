"""Which segmentations a store is known to hold: asked once, kept on disk, never lost to a passing fault."""

import json

import pytest
from pydicom.dataset import Dataset

from medsa.errors import NotFoundError, StoreError, StoreUnavailableError, TooLargeError
from medsa.server.answers import Answers
from medsa.server.segs import Segs


class Pacs:
    """A store of SEG series of one object each; `faults` are what it answers with before it answers well."""

    def __init__(self):
        self.headers, self.asked, self.faults = {}, 0, []

    def add(self, uid, image="1.2.3", **fields):
        header = Dataset()
        header.SOPInstanceUID, header.ContentDate, header.ContentTime = f"{uid}.1", "20260110", "120000"
        header.TimezoneOffsetFromUTC = "+0000"
        header.SegmentSequence, header.ReferencedSeriesSequence = [Dataset()], [Dataset()]
        header.SegmentSequence[0].SegmentAlgorithmType = "MANUAL"
        header.SegmentSequence[0].SegmentLabel = "Liver"
        header.ReferencedSeriesSequence[0].SeriesInstanceUID = image
        for name, value in fields.items():
            setattr(header, name, value)
        self.headers[uid] = header

    def search(self, _path, _query):
        found = []
        for uid in self.headers:
            one = Dataset()
            one.StudyInstanceUID, one.SeriesInstanceUID, one.NumberOfSeriesRelatedInstances = "1.2", uid, 1
            found.append(one)
        return found

    def metadata(self, _study, series, without=()):
        self.asked += 1
        if self.faults:
            raise self.faults.pop()
        return [self.headers[series]] if self.headers[series] else []


@pytest.fixture
def pacs():
    return Pacs()


@pytest.fixture
def segs(pacs, tmp_path):
    return Segs(pacs, tmp_path / "segs", Answers(live=0.0, stale=0.0))


def test_what_was_read_once_is_not_asked_again_not_even_after_a_restart(pacs, segs, tmp_path):
    pacs.add("1.5")
    assert segs.all() == segs.all() == Segs(pacs, tmp_path / "segs", Answers()).all()
    assert pacs.asked == 1
    assert segs.newest()["1.2.3"].labels == ("liver",)


def test_the_later_one_counts_whatever_the_time_zone_of_its_clock(pacs, segs):
    pacs.add("1.5", ContentTime="125900", TimezoneOffsetFromUTC="+0100")
    pacs.add("1.6", ContentTime="120000", TimezoneOffsetFromUTC="+0000")
    assert segs.newest()["1.2.3"].series == "1.6"


def test_what_was_kept_without_a_time_zone_is_asked_for_anew(pacs, segs, tmp_path):
    pacs.add("1.5")
    (seg,) = segs.all()
    (kept,) = (tmp_path / "segs").iterdir()
    kept.write_text(json.dumps([{**json.loads(kept.read_text())[0], "when": "2026-01-10T13:00:00.000000"}]))
    assert Segs(pacs, tmp_path / "segs", Answers()).all() == [seg]
    assert json.loads(kept.read_text())[0]["when"] == seg.when == "2026-01-10T12:00:00.000000+00:00"


@pytest.mark.parametrize("fault", [StoreError("500"), TooLargeError("full"), NotFoundError("not yet")])
def test_a_header_that_could_not_be_had_is_asked_for_again_and_the_fault_told_once(pacs, segs, fault, caplog):
    pacs.add("1.5")
    pacs.faults = [fault, fault]
    assert segs.all() == segs.all() == []
    assert caplog.text.count("left out") == 1
    assert segs.newest()["1.2.3"].series == "1.5"
    assert segs.all()
    assert pacs.asked == 3


def test_a_header_that_says_too_little_is_asked_for_once(pacs, segs):
    pacs.add("1.5", image="")
    pacs.add("1.6")
    del pacs.headers["1.6"].SOPInstanceUID
    assert segs.all() == segs.all() == []
    assert pacs.asked == 2


def test_an_answer_without_a_header_is_not_believed_for_ever(pacs, segs):
    pacs.add("1.5")
    header, pacs.headers["1.5"] = pacs.headers["1.5"], None
    assert segs.all() == []
    pacs.headers["1.5"] = header
    assert segs.all()


def test_a_store_that_is_away_is_said_to_be(pacs, segs):
    pacs.add("1.5")
    pacs.faults = [StoreUnavailableError("away")]
    with pytest.raises(StoreUnavailableError):
        segs.all()
    assert segs.all()
