"""The proxy's allow-list: DICOMweb's resources, and nothing that is spelt to look like one."""

import pytest

from medsa.errors import BadInputError
from medsa.server import proxy

STUDY = "studies/1.2.840.1"
SERIES = f"{STUDY}/series/1.2.840.2"
INSTANCE = f"{SERIES}/instances/1.2.840.3"


@pytest.mark.parametrize(
    "path",
    [
        "studies",
        "series",
        STUDY,
        f"{STUDY}/series",
        f"{STUDY}/metadata",
        SERIES,
        f"{SERIES}/metadata",
        f"{SERIES}/instances",
        f"{SERIES}/thumbnail",
        INSTANCE,
        f"{INSTANCE}/frames/1",
        f"{INSTANCE}/frames/1,2,3",
        f"{INSTANCE}/rendered",
        f"{INSTANCE}/frames/1/rendered",
        f"{INSTANCE}/bulk/00420011",
        f"{INSTANCE}/bulk/52009229/1/00081140",
    ],
)
@pytest.mark.parametrize("service", ["qido/", "wado/", ""])
def test_dicomweb_passes(path, service):
    assert proxy._READABLE.fullmatch(proxy._resource(service + path))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "..",
        "../system",
        "../../system",
        "studies/../../system",
        "studies/1.2.3/../../../system",
        "%2e%2e/system",
        "studies/%2e%2e",
        "studies//",
        "/studies",
        "studies/",
        "studies/1.2.3?x=1",
        "studies/1.2.3#x",
        "studies/1.2.3;x",
        "studies/1.2.3\\..\\system",
        "studies/1.2.3\n",
        "studies/abc",
        "studies/1..2",
        "studies/1.2.3/series/..",
        "instances/abc/file",
        "wado",
        "wado/wado",
        "qido/wado/studies",
        "rs/studies",
        "system",
        "tools/execute-script",
        f"{INSTANCE}/attachments/dicom/data",
        f"{INSTANCE}/bulk/../../x",
        f"{INSTANCE}/frames/1/../../..",
        "studies/1.2.3/export",
        "studies/1.2.3/anonymize",
        "stow/../changes",
    ],
)
def test_everything_else_is_refused(path):
    assert not proxy._READABLE.fullmatch(proxy._resource(path))
    assert not proxy._STORABLE.fullmatch(proxy._resource(path))


def test_only_a_study_takes_new_objects():
    assert proxy._STORABLE.fullmatch(proxy._resource("wado/studies"))
    assert proxy._STORABLE.fullmatch(proxy._resource(f"stow/{STUDY}"))
    assert not proxy._STORABLE.fullmatch(SERIES)


def test_the_parts_of_a_multipart_body_come_out_as_they_went_in():
    first, second = bytes(range(256)) * 3, b"--x\r\n--other\r\n\r\n"
    head = b"--b 1\r\nContent-Type: application/dicom\r\n\r\n"
    body = head + first + b"\r\n" + head + second + b"\r\n--b 1--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary="b 1"'
    assert proxy._parts(kind, body) == [first, second]


@pytest.mark.parametrize(
    "kind", ["application/dicom", "", "multipart/related", "multipart/related; boundary="]
)
def test_a_body_that_is_not_multipart_is_refused(kind):
    with pytest.raises(BadInputError, match="multipart"):
        proxy._parts(kind, b"--x\r\n\r\n\r\n--x--")
