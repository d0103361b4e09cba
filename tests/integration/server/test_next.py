"""Which study next, against a real Orthanc: label, save, next; two annotators; what is deleted; scores."""

import io
import json
import os
import signal
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from medsa.data.dicom import volume_from_datasets
from medsa.data.write import write_image, write_mask
from medsa.demo.orthanc import Orthanc
from medsa.demo.server import Server
from medsa.demo.studies import DemoStudy, abdomen, stow

PATIENCE = 600


@pytest.fixture(scope="module")
def site(environment, tmp_path_factory) -> Iterator[tuple[httpx.Client, Orthanc, dict[str, DemoStudy]]]:
    """A server over an Orthanc of its own with six small studies, all without a label."""
    studies = {
        study.series_uid: study for study in (abdomen((48, 48, 4), seed=seed) for seed in range(60, 66))
    }
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as orthanc:
        for study in studies.values():
            stow(orthanc.dicomweb_url, study.datasets)
        log = tmp_path_factory.mktemp("log") / "log"
        conf = {"labels": "abdomen"}
        with (
            Server(orthanc.dicomweb_url, log, conf=conf, environment=environment) as server,
            httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client,
        ):
            yield client, orthanc, studies


def ask(client: httpx.Client, strategy: str, who: str, **more: object) -> dict:
    answer = client.post(f"/activelearning/{strategy}", json={"client_id": who, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def save(client: httpx.Client, study: DemoStudy, tmp_path) -> None:
    path = tmp_path / "label.nii.gz"
    mask = np.asfortranarray(study.truth["liver"], np.uint8)
    write_mask(path, mask, volume_from_datasets(study.datasets))
    client.put(
        "/datastore/label",
        params={"image": study.series_uid},
        data={"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}]})},
        files={"label": (path.name, io.BytesIO(path.read_bytes()))},
    ).raise_for_status()


def scored(client: httpx.Client, method: str) -> dict:
    client.post(f"/scoring/{method}").raise_for_status()
    ends = time.monotonic() + PATIENCE
    while (task := client.get("/scoring/").json())["status"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < ends
        time.sleep(0.2)
    assert task["status"] == "DONE", task
    return task


def delete(orthanc: Orthanc, series: str) -> None:
    """As a person does in Orthanc itself."""
    base = orthanc.dicomweb_url.rsplit("/", 1)[0]
    with httpx.Client(base_url=base, trust_env=False) as store:
        (found,) = store.post(
            "/tools/find", json={"Level": "Series", "Query": {"SeriesInstanceUID": series}}
        ).json()
        store.delete(f"/series/{found}").raise_for_status()


def test_label_save_next_by_two_annotators_until_nothing_is_left(site, tmp_path) -> None:
    client, orthanc, studies = site
    assert next(iter(client.get("/info/").json()["strategies"])) == "random"
    ann, bob = ask(client, "random", "ann"), ask(client, "random", "bob")
    assert ann["id"] != bob["id"]
    assert ann["remaining"] == 6
    assert ann["why"] == "A random image that has no label yet"

    save(client, studies[ann["id"]], tmp_path)
    task = scored(client, "uncertainty")
    assert task["result"] == {"scored": 6, "failed": 0}
    third = ask(client, "uncertainty", "ann")
    assert third["strategy"] == "uncertainty", third
    assert third["id"] not in (ann["id"], bob["id"])
    assert third["rank"] >= 1
    assert third["remaining"] == 5
    assert "warning" not in third

    gone = next(uid for uid in studies if uid not in (ann["id"], bob["id"], third["id"]))
    delete(orthanc, gone)
    skipped = [ann["id"], bob["id"], third["id"]]
    left = set(studies) - {*skipped, gone}
    given = {ask(client, name, "eve", skip=skipped)["id"] for name in ("first", "diversity")}
    assert given == left
    nothing = ask(client, "hybrid", "joe")
    assert "id" not in nothing
    assert "other annotators" in nothing["why"]

    ct = ask(client, "first", "bob", modality="CT", body_part=studies[bob["id"]].datasets[0].BodyPartExamined)
    assert ct["id"] == bob["id"]
    refused = client.post("/activelearning/first", json={"client_id": "bob", "modality": "US"})
    assert refused.status_code == 400
    assert "modality" in refused.json()["detail"]

    save(client, studies[bob["id"]], tmp_path)
    assert scored(client, "dice")["result"]["scored"] == 2
    curve = client.get("/info/").json()["learning_curve"]
    assert len(curve) == 2
    assert all(0 <= point["dice"] <= 1 and point["source"] == "computed" for point in curve)


def test_a_browser_that_asks_before_any_click_is_one_annotator_also_after_a_restart(start, tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_image(folder / "only.nii.gz", volume_from_datasets(abdomen((48, 48, 4), seed=1).datasets))
    browser = {"sec-fetch-mode": "cors", "sec-fetch-site": "same-origin"}
    server = start(folder)
    with httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False, headers=browser) as ann:
        assert [ask(ann, "first", "").get("id") for _ in range(2)] == ["only", "only"]
        cookies = ann.cookies
    server.stop()
    with httpx.Client(base_url=start(folder).url, timeout=PATIENCE, trust_env=False) as client:
        assert "other annotators" in ask(client, "first", "bob")["why"]
        client.headers.update(browser)
        client.cookies.update(cookies)
        assert ask(client, "first", "")["id"] == "only"


def test_scoring_goes_on_where_a_killed_server_was(start, tmp_path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        study = abdomen((48, 48, 4), seed=number)
        write_image(folder / f"{number}.nii.gz", volume_from_datasets(study.datasets))
    killed = start(folder)
    with httpx.Client(base_url=killed.url, timeout=PATIENCE, trust_env=False) as client:
        client.post("/scoring/uncertainty").raise_for_status()
        ends = time.monotonic() + PATIENCE
        while (done := client.get("/scoring/").json()["progress"]["done"]) < 3:
            assert time.monotonic() < ends
            time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    assert done < 8, "all was done before the server was killed"
    with httpx.Client(base_url=start(folder).url, timeout=PATIENCE, trust_env=False) as client:
        task = scored(client, "uncertainty")
        assert 0 < task["progress"]["total"] <= 8 - done
        assert task["result"]["failed"] == 0
        assert scored(client, "uncertainty")["progress"]["total"] == 0
