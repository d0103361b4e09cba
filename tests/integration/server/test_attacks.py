"""Every attack that MONAI Label's stock routes let through, and some more, against a real server."""

import http.client
import io
import json
import zipfile

import pytest

from medsa.server import viewer as ohif

POINT = {"params": json.dumps({"foreground": [[1, 1, 1]]})}


def raw(server, method, target, body=b"", **headers):
    """Send `target` exactly as it is written; (status, content)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, target)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read()


def tree(folder):
    return {
        path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    "image", ["../../x", "..", ".", "/tmp/x", "a/b", "a\\b", "..%2f..%2fx", "\0", "x" * 300, "drawn/../../x"]
)
def test_nothing_is_written_outside_the_store(client, drawn, image):
    before = tree(drawn.around)
    content = (drawn.folder / "drawn.nii.gz").read_bytes()
    for path, name in (("/datastore/image", "file"), ("/datastore/label", "label")):
        answer = client.put(path, params={"image": image}, files={name: ("drawn.nii.gz", content)})
        assert 400 <= answer.status_code < 500, answer.text
    assert tree(drawn.around) == before


@pytest.mark.parametrize("tag", ["../..", "../../apps/medsa", "/tmp", "a/b", "final\0", "."])
def test_a_tag_is_no_path(client, drawn, tag):
    before = tree(drawn.around)
    content = (drawn.folder / "drawn.nii.gz").read_bytes()
    put = client.put(
        "/datastore/label", params={"image": drawn.image, "tag": tag}, files={"label": ("a.nii.gz", content)}
    )
    assert put.status_code == 400
    get = client.get("/datastore/label", params={"label": drawn.image, "tag": tag})
    assert get.status_code == 400
    assert tree(drawn.around) == before


@pytest.mark.parametrize("name", ["../../evil.nii", "/tmp/evil.nii", "x/../../../evil.nii"])
def test_an_archive_cannot_leave_its_folder(client, drawn, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, (drawn.folder / "drawn.nii.gz").read_bytes())
    answer = client.put("/session/?uncompress=true", files={"files": ("a.zip", buffer.getvalue())})
    assert answer.status_code == 400
    assert "plain files" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/etc/hostname", "../../../../etc/passwd", "file:///etc/passwd"]
)
def test_no_file_of_the_server_is_read(client, drawn, path):
    answers = [
        client.post("/infer/medsa_2d", params={"image": path}, data=POINT),
        client.get("/datastore/image", params={"image": path}),
        client.get("/datastore/image/info", params={"image": path}),
        client.get("/datastore/label", params={"label": path, "tag": "final"}),
        client.post("/infer/medsa_2d", params={"session_id": path}, data=POINT),
    ]
    assert all(answer.status_code in (400, 404) for answer in answers)
    assert not any("root:" in answer.text for answer in answers)


@pytest.mark.parametrize(
    "override", [{"image": "/etc/passwd"}, {"model": "x"}, {"session": {"image": "/etc"}}]
)
def test_params_do_not_override_what_the_address_says(client, drawn, override):
    params = {"foreground": [[1, 1, 1]], **override}
    answer = client.post(f"/infer/medsa_2d?image={drawn.image}", data={"params": json.dumps(params)})
    assert answer.status_code == 400


def test_a_client_cannot_change_the_log_level_or_the_device(client, drawn):
    params = {"foreground": [[30, 24, 6]], "logging": "DEBUG", "device": "cuda:7"}
    answer = client.post(f"/infer/medsa_2d?image={drawn.image}", data={"params": json.dumps(params)})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/proxy/dicom/%2e%2e/system",
        "/proxy/dicom/../system",
        "/proxy/dicom/..%2fsystem",
        "/proxy/dicom/%252e%252e/system",
        "/proxy/dicom/wado/%2e%2e/%2e%2e/system",
        "/proxy/dicom/qido/../../system",
        "/proxy/dicom/wado/studies/%2e%2e/%2e%2e/%2e%2e/system",
        "/proxy/dicom//system",
        "/proxy/dicom/http://127.0.0.1/system",
        "/proxy/dicom/studies%3f/../../system",
        "/proxy/dicom/wado/studies/1.2.3/..%5c..%5csystem",
        "/proxy/dicom/wado/servers",
        "/proxy/dicom/instances/../../tools/execute-script",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_the_stores_private_api_is_out_of_reach(orthanc_server, path, method):
    status, content = raw(orthanc_server, method, path)
    assert status in (400, 404, 405)
    assert b"Orthanc" not in content
    assert b"DicomAet" not in content


@pytest.mark.parametrize(
    "path",
    [
        "/ohif/../main.py",
        "/ohif/%2e%2e/%2e%2e/datastore.py",
        "/ohif/..",
        "/ohif//etc/passwd",
        "/ohif/medsa-panel/../viewer.py",
        "/ohif/medsa-panel/%2e%2e/viewer.py",
        "/ohif/medsa-panel//etc/passwd",
    ],
)
def test_the_viewers_folder_is_not_left(folder_server, path):
    status, content = raw(folder_server, "GET", path)
    page = ohif.changed_files()[ohif.PAGE]
    assert status == 404 or content.decode() in [ohif.page_at(page, "/" * depth) for depth in range(4)]


def test_models_are_neither_given_away_nor_replaced(client):
    assert client.get("/model/medsa_2d").status_code == 404
    assert client.put("/model/medsa_2d", files={"file": ("m.pt", b"x")}).status_code == 403
    assert client.delete("/model/medsa_2d").status_code == 403
    assert len(client.get("/model/info/medsa_2d").json()["checksum"]) == len("SHA256:") + 64


def test_no_other_site_may_read_or_act(client, drawn):
    evil = {"origin": "http://evil.example"}
    answer = client.get("/info/", headers=evil)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    for method, path in (
        ("POST", "/reload"),
        ("POST", f"/infer/medsa_2d?image={drawn.image}"),
        ("DELETE", "/train/"),
    ):
        assert client.request(method, path, headers=evil).status_code == 403


def test_whole_slides_and_batches_are_refused_with_a_reason(client):
    for path in ("/infer/wsi/medsa_2d", "/infer/wsi_v2/medsa_2d", "/batch/infer/medsa_2d"):
        answer = client.post(path)
        assert 400 <= answer.status_code < 500
        assert len(answer.json()["detail"].split()) > 5


def test_no_stock_route_is_left(client):
    ours = {"/info/", "/infer/{model}", "/datastore/", "/session/", "/model/{model}", "/train/", "/scoring/"}
    paths = client.get("/openapi.json").json()["paths"]
    assert ours <= set(paths)
    for path in ("/datastore/", "/session/"):
        assert client.patch(path).status_code == 405
