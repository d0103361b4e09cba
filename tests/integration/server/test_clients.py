"""The requests of OHIF, 3D Slicer and MONAI Label's own client, as they send them, to a real server."""

import json
import re
from io import BytesIO
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from monailabel.client import MONAILabelClient
from pydicom.uid import SegmentationStorage

from medsa.evaluation import dice

SHAPE = (64, 56, 12)
CENTRE = (30, 24, 6)
COLUMN, ROW, SLICE = CENTRE
BOX = [COLUMN - 16, COLUMN + 16, ROW + 12, ROW - 12, SLICE, SLICE]


def read_mask(source):
    """(I, J, K) and header of NRRD bytes, or of a file."""
    stream = BytesIO(source if isinstance(source, bytes) else Path(source).read_bytes())
    header = nrrd.read_header(stream)
    return nrrd.read_data(header, stream), header


@pytest.fixture
def slicer(folder_server, tmp_path):
    return MONAILabelClient(folder_server.url, tmpdir=str(tmp_path), client_id="user-7")


def slicer_params(**more):
    return {
        "label": "liver",
        "foreground": [],
        "background": [],
        "roi": [],
        "reset_state": False,
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        **more,
    }


def test_ohif_connects(client):
    info = client.get("/info/").json()
    assert info["datastore"]["total"] == 1
    assert {name: model["type"] for name, model in info["models"].items()} == {
        "medsa_2d": "deepgrow",
        "medsa_3d": "deepgrow",
        "medsa_auto": "segmentation",
    }
    assert [info["models"][name]["dimension"] for name in ("medsa_2d", "medsa_3d")] == [2, 3]
    assert info["options"]["backbone"] == "lite_medsam"
    assert "liver" in info["labels"]
    assert client.get("/train/?check_if_running=true").status_code == 404
    assert client.get("/auth/").status_code == 404


def test_a_click_from_ohif_gives_the_raw_bytes_of_the_whole_volume(client, drawn):
    answer = client.ohif(drawn.image, [CENTRE])
    assert answer.status_code == 200, answer.text
    mask, header = read_mask(answer.content)
    assert header["encoding"] == "raw"
    assert header["type"] == "uint8"
    assert mask.shape == SHAPE
    assert mask[CENTRE]
    assert not np.delete(mask, SLICE, axis=2).any()
    voxels = answer.content[-mask.size :]
    assert voxels[COLUMN + SHAPE[0] * (ROW + SHAPE[1] * SLICE)]


def test_a_box_from_slicer_outlines_the_object(slicer, drawn):
    file, params = slicer.infer("medsa_2d", drawn.image, slicer_params(slice=SLICE, roi=BOX))
    mask, header = read_mask(file)
    assert dice(mask[:, :, SLICE], drawn.truth[:, :, SLICE]) > 0.85
    assert params["label_names"] == {"liver": 1}
    assert set(params["latencies"]) >= {"encode", "decode", "total"}
    np.testing.assert_allclose(header["space directions"], np.diag([1.5, 1.5, 3.0]))
    np.testing.assert_allclose(header["space origin"], [-40, -30, -20])


def test_a_volume_follows_from_one_box(slicer, drawn):
    file, params = slicer.infer("medsa_3d", drawn.image, slicer_params(roi=BOX))
    mask, _ = read_mask(file)
    assert len(params["slices"]) > 3
    assert dice(mask, drawn.truth) > 0.8
    assert dice(mask[:, :, SLICE], drawn.truth[:, :, SLICE]) > 0.9


def test_a_background_click_changes_the_mask(client, drawn):
    first, _ = read_mask(client.ohif(drawn.image, [CENTRE], roi=BOX).content)
    away = [(COLUMN + 10, ROW, SLICE)]
    second, _ = read_mask(client.ohif(drawn.image, [CENTRE], roi=BOX, background=away).content)
    assert (first != second).any()
    assert second[CENTRE]


def test_undo_gives_the_mask_before_the_last_click(client, drawn):
    params = {"client_id": "undoer", "label": "spleen"}
    masks = [
        client.ohif(drawn.image, points, **params).content
        for points in ([CENTRE], [CENTRE, (COLUMN + 8, ROW, SLICE)])
    ]
    assert client.ohif(drawn.image, undo=True, **params).content == masks[0]
    empty, _ = read_mask(client.ohif(drawn.image, undo=True, **params).content)
    assert not empty.any()


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_nifti_comes_on_the_images_own_grid(slicer, drawn, extension):
    file, _ = slicer.infer(
        "medsa_2d", drawn.image, slicer_params(foreground=[CENTRE], result_extension=extension)
    )
    assert file.endswith(extension)
    found, image = nibabel.load(file), nibabel.load(drawn.folder / "drawn.nii.gz")
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
    assert found.shape == image.shape


def test_json_only_where_only_json_is_wanted(client, drawn):
    params = json.dumps({"foreground": [CENTRE]})
    answer = client.post(f"/infer/medsa_2d?image={drawn.image}&output=json", data={"params": params})
    assert answer.json()["slices"] == [SLICE]


def test_an_image_that_slicer_sends_is_a_session(slicer, drawn, client):
    session = slicer.create_session(str(drawn.folder / "drawn.nii.gz"))["session_id"]
    file, _ = slicer.infer("medsa_2d", "", slicer_params(slice=SLICE, roi=BOX), session_id=session)
    mask, _ = read_mask(file)
    assert dice(mask[:, :, SLICE], drawn.truth[:, :, SLICE]) > 0.85
    slicer.get_session(session)
    slicer.remove_session(session)
    answer = client.post(f"/infer/medsa_2d?session_id={session}", data={"params": "{}"})
    assert answer.status_code == 404
    assert "send the image again" in answer.json()["detail"]


def test_an_image_may_come_with_the_click(slicer, drawn):
    path = str(drawn.folder / "drawn.nii.gz")
    file, _ = slicer.infer("medsa_2d", "", slicer_params(slice=SLICE, roi=BOX), file=path)
    mask, _ = read_mask(file)
    assert mask[CENTRE]


def test_slicer_downloads_labels_and_asks_for_the_next(slicer, drawn, client):
    client.delete("/datastore/label", params={"id": drawn.image, "tag": "final"})
    sample = slicer.next_sample("random", {})
    assert sample["id"] == drawn.image
    image = client.get(f"/datastore/image?image={drawn.image}")
    assert image.content == (drawn.folder / "drawn.nii.gz").read_bytes()
    assert client.head(f"/datastore/image?image={drawn.image}").status_code == 200


def test_a_dicom_series_is_clicked_saved_and_found_again(viewer, demo_abdomen, orthanc):
    liver = demo_abdomen.truth["liver"]
    k = int(liver.sum(axis=(0, 1)).argmax())
    i, j = np.argwhere(liver[:, :, k]).mean(axis=0).round().astype(int).tolist()
    ij = np.argwhere(liver[:, :, k])
    (i0, j0), (i1, j1) = ij.min(axis=0).tolist(), ij.max(axis=0).tolist()
    answer = viewer.ohif(demo_abdomen.series_uid, [[i, j, k]], roi=[i0, i1, j0, j1, k, k])
    assert answer.status_code == 200, answer.text
    mask, _ = read_mask(answer.content)
    assert mask.shape == liver.shape
    assert dice(mask[:, :, k], liver[:, :, k]) > 0.6

    before = viewer.get("/info/").json()["datastore"]
    saved = viewer.save(demo_abdomen.series_uid, answer.content)
    assert saved.status_code == 200, saved.text
    after = viewer.get("/info/").json()["datastore"]
    assert after["completed"] >= max(1, before["completed"])
    label = saved.json()["label"]
    got = viewer.get("/datastore/label", params={"label": label, "tag": "final"})
    assert got.status_code == 200, got.text
    assert viewer.head("/datastore/label", params={"label": label, "tag": "final"}).status_code == 200


def test_the_mask_as_dicom_seg(viewer, demo_abdomen, tmp_path):
    i, j, k = np.argwhere(demo_abdomen.truth["liver"]).mean(axis=0).round().astype(int).tolist()
    params = {"foreground": [[i, j, k]], "label_info": [{"name": "liver", "idx": 1}]}
    answer = viewer.post(
        f"/infer/medsa_2d?image={demo_abdomen.series_uid}&output=dicom_seg",
        data={"params": json.dumps(params)},
    )
    assert answer.status_code == 200, answer.text
    (tmp_path / "seg.dcm").write_bytes(answer.content)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.SOPClassUID == SegmentationStorage
    assert dataset.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"
    assert dataset.SegmentSequence[0].SegmentLabel == "liver"


def test_the_viewer_and_its_files_are_served(client):
    page = client.get("/ohif/monai-label?StudyInstanceUIDs=1.2.3")
    assert "text/html" in page.headers["content-type"]
    assert "window.config" in client.get("/ohif/app-config.js").text
    assert client.get("/ohif/assets/nothing.js").status_code == 404
    assert client.get("/ohif/medsa-panel/extension.mjs").headers["content-type"].startswith("text/javascript")
    assert client.get("/ohif/medsa-panel/../../viewer.py").status_code == 404
    assert client.get("/ohif/medsa-panel/%2e%2e/%2e%2e/viewer.py").status_code == 404


def test_the_viewers_page_names_its_parts_from_any_depth_and_none_elsewhere(client):
    for path, up in (("", "./"), ("monai-label", "./"), ("medsa/dicomweb", "../")):
        page = client.get(f"/ohif/{path}").text
        assert f'src="{up}app-config.js"' in page
        assert "https://" not in page
        assert '"/ohif/' not in page


def test_the_log_names_no_patient_and_no_id(viewer, orthanc_server, demo_abdomen):
    viewer.ohif(demo_abdomen.series_uid, [[30, 30, 5]])
    viewer.get(f"/proxy/dicom/qido/studies?PatientName=DEMO*&StudyInstanceUID={demo_abdomen.study_uid}")
    viewer.get("/datastore/label", params={"label": demo_abdomen.series_uid, "tag": "final"})
    log = orthanc_server.log.read_text()
    assert "mask for" in log
    for secret in (demo_abdomen.series_uid, demo_abdomen.study_uid, "DEMO"):
        assert secret not in log


def test_the_example_for_scripts_does_what_it_says(folder_server):
    text = (Path(__file__).parents[3] / "docs" / "ohif.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    names = {}
    mine = code.replace("station-3", "user-7")  # the only image is theirs for half an hour
    exec(mine.replace("http://127.0.0.1:8000", folder_server.url), names)
    first, undone = (read_mask(names[name])[0] for name in ("first", "undone"))
    np.testing.assert_array_equal(first, undone)
    assert first.any()
    assert read_mask(names["second"])[0].shape == first.shape


def test_a_cropped_answer_is_its_slices_in_their_place(client, drawn):
    whole = client.ohif(drawn.image, [[COLUMN, ROW, SLICE]], model="medsa_3d")
    part = client.ohif(drawn.image, [[COLUMN, ROW, SLICE]], model="medsa_3d", crop=True)
    (mask, header), (cropped, place) = read_mask(whole.content), read_mask(part.content)
    held = np.flatnonzero(mask.any(axis=(0, 1)))
    np.testing.assert_array_equal(cropped, mask[:, :, held[0] : held[-1] + 1])
    step = header["space directions"][2]
    np.testing.assert_allclose(place["space origin"], header["space origin"] + held[0] * step)


def test_labels_are_told_with_their_colours_and_may_be_added(client):
    labels = {label["name"]: label for label in client.get("/medsa/labels").json()["labels"]}
    assert labels["liver"] == {"name": "liver", "index": 5, "color": [221, 130, 101]}
    added = client.post("/medsa/labels", json={"name": "  polyp  of colon "}).json()
    assert added["name"] == "polyp of colon"
    assert added["index"] > max(label["index"] for label in labels.values())
    assert client.post("/medsa/labels", json={"name": "POLYP of colon"}).json() == added
    assert "polyp of colon" in client.get("/info/").json()["models"]["medsa_2d"]["labels"]
    for name in ("", " ", "x" * 65, "a\u0000b"):
        assert client.post("/medsa/labels", json={"name": name}).status_code == 400
