"""The viewer's way to a real Orthanc: what it asks for comes back whole, and nothing else does."""

from io import BytesIO

import httpx
import numpy as np
import pydicom
import pytest

from medsa.data.dicom import volume_from_datasets
from medsa.data.labels import load_labels
from medsa.data.seg import write_seg
from medsa.demo.studies import stow

JSON = {"accept": "application/dicom+json"}
LABELS = load_labels("default")


@pytest.fixture
def series(demo_abdomen):
    return f"studies/{demo_abdomen.study_uid}/series/{demo_abdomen.series_uid}"


def stored(dataset):
    """A STOW request as OHIF's dicomweb-client sends it."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    kind = 'multipart/related; type="application/dicom"; boundary=xYz'
    body = b"\r\n--xYz\r\nContent-Type: application/dicom\r\n\r\n" + buffer.getvalue() + b"\r\n--xYz--"
    return {"content": body, "headers": {"content-type": kind, "accept": "application/dicom+json"}}


def a_seg(study):
    """A SEG of the liver, read back from its bytes so that a test may spoil it."""
    volume = volume_from_datasets(study.datasets)
    mask = study.truth["liver"].astype(np.uint8)
    buffer = BytesIO()
    write_seg(mask, volume, LABELS, names={1: "liver"}).save_as(buffer, enforce_file_format=True)
    return pydicom.dcmread(BytesIO(buffer.getvalue()))


def test_a_search_keeps_its_query(viewer, demo_abdomen, demo_brain):
    found = viewer.get(
        f"/proxy/dicom/qido/studies?StudyInstanceUID={demo_brain.study_uid}&includefield=00081030",
        headers=JSON,
    )
    assert [study["0020000D"]["Value"][0] for study in found.json()] == [demo_brain.study_uid]
    none = viewer.get("/proxy/dicom/qido/studies?PatientID=nobody%20at%20all", headers=JSON)
    assert none.status_code in (200, 204)
    assert not none.content or none.json() == []
    one = viewer.get("/proxy/dicom/qido/studies?limit=1&offset=1", headers=JSON)
    assert len(one.json()) == 1


@pytest.mark.parametrize("service", ["qido", "wado"])
def test_metadata_comes_by_either_name_and_points_back_to_the_proxy(viewer, orthanc, series, service):
    answer = viewer.get(f"/proxy/dicom/{service}/{series}/metadata", headers=JSON)
    assert answer.headers["content-type"].startswith("application/dicom+json")
    assert len(answer.json()) == 20
    assert f":{orthanc.port}/" not in answer.text


def test_the_accept_header_decides_what_comes(viewer, series, demo_abdomen):
    instance = demo_abdomen.datasets[3]
    address = f"/proxy/dicom/wado/{series}/instances/{instance.SOPInstanceUID}/frames/1"
    frames = viewer.get(address, headers={"accept": 'multipart/related; type="application/octet-stream"'})
    assert frames.headers["content-type"].startswith("multipart/related")
    assert instance.PixelData in frames.content
    picture = viewer.get(
        f"/proxy/dicom/wado/{series}/instances/{instance.SOPInstanceUID}/rendered",
        headers={"accept": "image/jpeg"},
    )
    assert picture.content[:2] == b"\xff\xd8"


def test_the_bytes_are_those_of_the_store(viewer, orthanc, series):
    headers = {"accept": 'multipart/related; type="application/dicom"'}
    ours = viewer.get(f"/proxy/dicom/wado/{series}", headers=headers).content
    theirs = httpx.get(f"{orthanc.dicomweb_url}/{series}", headers=headers).content
    assert len(ours) == len(theirs)
    assert ours.count(b"DICM") == 20


def test_what_is_not_there_is_404_without_the_stores_own_words(viewer):
    answer = viewer.get("/proxy/dicom/wado/studies/1.2.3.4/metadata")
    assert answer.status_code == 404
    assert "OrthancError" not in answer.text


def test_the_stores_login_is_used_and_not_told(start, new_orthanc, demo_spine):
    orthanc = new_orthanc(user="medsa", password="s3cret-word")
    stow(orthanc.dicomweb_url, demo_spine.datasets, auth=("medsa", "s3cret-word"))
    server = start(
        orthanc.dicomweb_url,
        MONAI_LABEL_DICOMWEB_USERNAME="medsa",
        MONAI_LABEL_DICOMWEB_PASSWORD="s3cret-word",
    )
    answer = httpx.get(f"{server.url}/proxy/dicom/qido/studies")
    assert len(answer.json()) == 1
    assert "s3cret" not in answer.text + str(answer.headers) + httpx.get(f"{server.url}/info/").text
    image = {"image": demo_spine.series_uid}
    click = httpx.post(
        f"{server.url}/infer/medsa_2d",
        params=image,
        data={"params": '{"foreground": [[60, 60, 0]]}'},
        timeout=120,
    )
    assert click.status_code == 200, click.text
    assert "s3cret" not in server.log.read_text().partition("Uvicorn running")[2]


def test_a_wrong_login_is_the_servers_trouble_and_not_the_users(start, new_orthanc):
    orthanc = new_orthanc(user="medsa", password="right")
    server = start(
        orthanc.dicomweb_url, MONAI_LABEL_DICOMWEB_USERNAME="medsa", MONAI_LABEL_DICOMWEB_PASSWORD="x"
    )
    answer = httpx.get(f"{server.url}/proxy/dicom/qido/studies")
    assert answer.status_code == 503
    assert "www-authenticate" not in answer.headers


def test_a_seg_that_the_viewer_stores_arrives_and_counts(viewer, demo_abdomen, series):
    seg = a_seg(demo_abdomen)
    answer = viewer.post("/proxy/dicom/wado/studies", **stored(seg))
    assert answer.status_code == 200, answer.text
    found = viewer.get(
        f"/proxy/dicom/qido/studies/{demo_abdomen.study_uid}/series?Modality=SEG", headers=JSON
    )
    assert seg.SeriesInstanceUID in [one["0020000E"]["Value"][0] for one in found.json()]
    assert viewer.get("/info/").json()["datastore"]["completed"] >= 1
    label = viewer.get("/datastore/label", params={"label": demo_abdomen.series_uid, "tag": "final"})
    assert label.status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda seg: setattr(seg, "PatientID", "SOMEBODY-ELSE"),
        lambda seg: setattr(seg, "StudyInstanceUID", "1.2.3.4"),
        lambda seg: setattr(seg.ReferencedSeriesSequence[0], "SeriesInstanceUID", "1.2.3.4"),
        lambda seg: delattr(seg, "ReferencedSeriesSequence"),
        lambda seg: setattr(seg, "PixelData", bytes(len(seg.PixelData))),
        lambda seg: setattr(seg, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.2"),
    ],
    ids=["patient", "study", "series", "no reference", "empty", "no SEG"],
)
def test_a_seg_that_fits_no_image_is_refused(viewer, demo_abdomen, change):
    seg = a_seg(demo_abdomen)
    change(seg)
    before = viewer.get("/proxy/dicom/qido/instances?Modality=SEG", headers=JSON)
    answer = viewer.post("/proxy/dicom/wado/studies", **stored(seg))
    assert 400 <= answer.status_code < 500, answer.text
    after = viewer.get("/proxy/dicom/qido/instances?Modality=SEG", headers=JSON)
    assert after.content == before.content


def test_a_folder_has_no_dicomweb(client):
    answer = client.get("/proxy/dicom/qido/studies")
    assert answer.status_code == 404
    assert "folder" in answer.json()["detail"]
