"""Whatever a client gets wrong is answered with a 4xx and a sentence, never with a 500; nothing is lost."""

import json

import nibabel
import numpy as np
import pydicom
import pytest

from medsa.data.volume import Volume
from medsa.data.write import nrrd_bytes

SHAPE = (64, 56, 12)
OK = [[30, 24, 6]]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "no foreground point"),
        ({"foreground": [], "background": []}, "no foreground point"),
        ({"foreground": [[64, 0, 0]]}, "outside"),
        ({"foreground": [[0, 0, 12]]}, "outside"),
        ({"foreground": [[-1, 0, 0]]}, "outside"),
        ({"foreground": [[float("nan"), 0, 0]]}, "finite"),
        ({"foreground": [[float("inf"), 0, 0]]}, "finite"),
        ({"foreground": [[1e400, 0, 0]]}, "finite"),
        ({"foreground": OK, "box": [[5, 5, 6], [5, 9, 6]]}, "no area"),
        ({"foreground": OK, "label": "lever"}, "unknown label"),
        ({"foreground": OK, "fast": True}, "unknown parameter"),
        ({"foreground": OK, "window": "lnug"}, "window"),
        ({"foreground": OK, "window": "9,1"}, "window"),
        ({"foreground": OK, "result_extension": ".png"}, ".nrrd"),
        ({"foreground": "no list"}, "JSON"),
    ],
)
@pytest.mark.parametrize("model", ["medsa_2d", "medsa_3d"])
def test_a_click_that_cannot_be_used(client, drawn, model, params, says):
    answer = client.post(f"/infer/{model}?image={drawn.image}", data={"params": json.dumps(params)})
    assert answer.status_code in (400, 422), answer.text
    assert says in answer.json()["detail"]


@pytest.mark.parametrize(
    "params", ["", "[]", "{", "null", "[" * 200_000, '{"foreground":' + "9" * 9000 + "}"]
)
def test_params_that_are_no_json_object(client, drawn, params):
    answer = client.post(f"/infer/medsa_2d?image={drawn.image}", data={"params": params})
    assert answer.status_code == 400, answer.text
    assert answer.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/infer/none?image=drawn", 404),
        ("/infer/medsa_2d?image=gone", 404),
        ("/infer/medsa_2d", 400),
        ("/infer/medsa_2d?image=drawn&output=gif", 422),
        ("/infer/medsa_2d?session_id=00000000-0000-4000-8000-000000000000", 404),
        ("/infer/medsa_2d?image=drawn&output=dicom_seg", 400),
    ],
)
def test_an_address_that_leads_nowhere(client, path, status):
    answer = client.post(path, data={"params": json.dumps({"foreground": OK})})
    assert answer.status_code == status, answer.text
    assert len(answer.json()["detail"].split()) > 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("image.nii.gz", b"no image"),
        ("image.nii.gz", b"\x1f\x8b\x08\x00cut"),
        ("image.nii", b"\x5c\x01\x00\x00" + b"\0" * 344),
        ("image.nrrd", b"NRRD0004\ntype: short\ndimension: 3\nsizes: 9 9 9\nencoding: raw\n\n12"),
        ("image.png", b"\x89PNG\r\n\x1a\n\0\0"),
        ("image.dcm", b"\0" * 128 + b"DICM" + b"\xff" * 50),
        ("image.nii.gz", b""),
        ("image.txt", b"text"),
        ("image.pt", b"\x80\x02}q\x00."),
        ("", b"x"),
    ],
)
def test_an_upload_that_is_no_image(client, drawn, name, content):
    before = client.get("/datastore/?output=all").json()
    answers = [
        client.put("/datastore/image?image=new", files={"file": (name, content)}),
        client.put("/session/", files={"files": (name, content)}),
        client.post(
            "/infer/medsa_2d",
            data={"params": json.dumps({"foreground": OK})},
            files={"file": (name, content)},
        ),
        client.put(f"/datastore/label?image={drawn.image}", files={"label": (name, content)}),
    ]
    assert [400 <= answer.status_code < 500 for answer in answers] == [True] * 4, [a.text for a in answers]
    assert all(answer.json()["detail"] for answer in answers)
    assert client.get("/datastore/?output=all").json() == before


def label(shape=SHAPE, value=1, affine=None):
    mask = np.zeros(shape, np.uint8, order="F")
    mask[5:9, 5:9, 2:4] = value
    given = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 30], [0, 0, 3.0, -20], [0, 0, 0, 1.0]])
    return nrrd_bytes(mask, Volume(mask, given if affine is None else affine))


@pytest.mark.parametrize(
    "content",
    [
        label(shape=(64, 56, 11)),
        label(shape=(32, 28, 12)),
        label(affine=np.diag([1.0, 1, 1, 1])),
        label(value=0),
    ],
    ids=["short", "coarse", "elsewhere", "empty"],
)
def test_a_label_off_the_grid_or_empty_is_refused_and_the_old_one_stays(client, drawn, content):
    assert client.save(drawn.image, label()).status_code == 200
    before = client.get("/datastore/label", params={"label": drawn.image, "tag": "final"}).content
    answer = client.save(drawn.image, content)
    assert answer.status_code == 422, answer.text
    assert client.get("/datastore/label", params={"label": drawn.image, "tag": "final"}).content == before


def test_a_label_of_an_unknown_name_is_refused(client, drawn):
    answer = client.save(drawn.image, label(), label="lever")
    assert 400 <= answer.status_code < 500
    assert "lever" in answer.json()["detail"]


def test_a_label_for_an_image_that_is_not_there(client):
    assert client.save("gone", label()).status_code == 404


def test_an_image_is_not_overwritten(client, drawn, tmp_path):
    content = (drawn.folder / "drawn.nii.gz").read_bytes()
    answer = client.put(f"/datastore/image?image={drawn.image}", files={"file": ("other.nii.gz", content)})
    assert answer.status_code == 400
    assert "another id" in answer.json()["detail"]


def test_an_added_image_can_be_clicked_at_once_and_removed(client, drawn, tmp_path):
    volume = nibabel.Nifti1Image(
        np.random.default_rng(0).normal(0, 1, (20, 20, 3)).astype(np.float32), np.eye(4)
    )
    nibabel.save(volume, tmp_path / "a.nii.gz")
    put = client.put(
        "/datastore/image?image=added", files={"file": ("a.nii.gz", (tmp_path / "a.nii.gz").read_bytes())}
    )
    assert put.status_code == 200, put.text
    assert client.ohif("added", [[10, 10, 1]]).status_code == 200
    assert client.delete("/datastore/image?id=added").status_code == 200
    assert client.ohif("added", [[10, 10, 1]]).status_code == 404


def test_a_series_that_is_no_image_or_not_there(viewer, orthanc, demo_abdomen):
    assert viewer.ohif("1.2.3.4.5", OK).status_code == 404
    for path in ("/datastore/image", "/datastore/image/info"):
        assert viewer.get(path, params={"image": "1.2.3.4.5"}).status_code == 404
    assert viewer.ohif("abc", OK).status_code in (400, 404)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/dicom", 400),
        (b"x", "multipart/related", 400),
        (b"--b\r\n\r\nno dicom\r\n--b--", "multipart/related; boundary=b", 400),
    ],
)
def test_what_the_viewer_stores_must_be_dicom(viewer, content, kind, status):
    answer = viewer.post("/proxy/dicom/wado/studies", content=content, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_the_viewer_stores_no_images(viewer, demo_spine, tmp_path):
    path = tmp_path / "image.dcm"
    pydicom.dcmwrite(path, demo_spine.datasets[0])
    body = b"--b\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n--b--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    answer = viewer.post("/proxy/dicom/wado/studies", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert "only segmentations" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/logs/?lines=-5"),
        ("GET", "/session/none"),
        ("DELETE", "/session/none"),
        ("POST", "/activelearning/none"),
        ("POST", "/train/none"),
        ("POST", "/scoring/none"),
        ("GET", "/scoring/"),
        ("GET", "/batch/infer"),
        ("GET", "/datastore/label?label=none&tag=final"),
        ("GET", "/datastore/label/info?label=none&tag=final"),
        ("GET", "/datastore/image/info?image=none"),
        ("DELETE", "/datastore/image?id=none"),
        ("DELETE", "/datastore/label?id=none&tag=final"),
        ("GET", "/datastore/?output=nothing"),
        ("PUT", "/datastore/label?image=drawn"),
        ("GET", "/model/none"),
        ("GET", "/model/info/none"),
        ("GET", "/nowhere"),
    ],
)
def test_every_other_wrong_turn_is_a_sentence(client, method, path):
    answer = client.request(method, path)
    assert 400 <= answer.status_code < 500, answer.text
    assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("path", ["/activelearning/random", "/train/", "/scoring/"])
@pytest.mark.parametrize("body", [b"[", b"[]", b'"x"', b"[" * 100_000, b"\xff\xfe"])
def test_a_body_that_is_no_object(client, path, body):
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    assert isinstance(answer.json()["detail"], str)
