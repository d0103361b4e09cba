"""Several people at once: nobody disturbs, or waits for, anybody else."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from medsa.demo.orthanc import Orthanc

COLUMN, ROW, SLICE = CENTRE = (30, 24, 6)
BROWSER = {"sec-fetch-mode": "cors", "sec-fetch-site": "same-origin"}


def user(server, **headers):
    return httpx.Client(base_url=server.url, timeout=300, trust_env=False, headers=headers)


def click(client, points, model="medsa_2d", **params):
    import json

    sent = {"foreground": points, "background": [], "result_extension": ".nrrd", **params}
    return client.post(f"/infer/{model}?image=drawn&output=image", data={"params": json.dumps(sent)})


def test_two_users_get_what_each_would_get_alone(folder_server):
    clicks = {
        "ann": [[CENTRE], [CENTRE, (COLUMN + 8, ROW, SLICE)]],
        "bob": [[(COLUMN, ROW, SLICE - 2)], [(COLUMN, ROW, SLICE - 2), (COLUMN - 8, ROW, SLICE - 2)]],
    }

    def alone(name):
        with user(folder_server) as client:
            return [click(client, points, client_id=f"alone-{name}").content for points in clicks[name]]

    expected = {name: alone(name) for name in clicks}

    def together(name, start):
        with user(folder_server) as client:
            start.wait()
            return [click(client, points, client_id=name).content for points in clicks[name]]

    start = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(clicks, pool.map(together, clicks, [start, start]), strict=True))
    assert found == expected


def test_two_browsers_on_one_machine_are_two_users(folder_server):
    with user(folder_server, **BROWSER) as ann, user(folder_server, **BROWSER) as bob:
        first = click(ann, [CENTRE])
        assert first.cookies["medsa_session"]
        flags = first.headers["set-cookie"].lower()
        assert "httponly" in flags
        assert "samesite=strict" in flags
        assert "set-cookie" not in click(ann, [CENTRE, (COLUMN + 8, ROW, SLICE)]).headers
        assert click(bob, [CENTRE]).cookies["medsa_session"] != first.cookies["medsa_session"]
        undone = click(ann, None, undo=True)
        assert undone.content == first.content


def test_info_and_other_images_do_not_wait_for_a_click(folder_server):
    """While a volume is computed, /info/ is answered many times; how fast is for the benchmarks."""
    done = threading.Event()

    def compute():
        with user(folder_server) as client:
            try:
                return click(client, [CENTRE], model="medsa_3d", client_id="slow").status_code
            finally:
                done.set()

    with ThreadPoolExecutor(1) as pool, user(folder_server) as other:
        running = pool.submit(compute)
        waits = []
        while not done.is_set():
            started = time.perf_counter()
            assert other.get("/info/").status_code == 200
            waits.append(time.perf_counter() - started)
        took = running.result()
    assert took == 200
    assert len(waits) > 5


def test_a_newer_click_ends_the_older_volume_of_the_same_user_only(folder_server):
    points = [(COLUMN, ROW, k) for k in (5, 6, 7)]

    def ask(name, point, delay):
        time.sleep(delay)
        with user(folder_server) as client:
            return click(client, [point], model="medsa_3d", client_id=name, label="heart")

    jobs = [("ann", points[0], 0.0), ("bob", points[1], 0.0), ("ann", points[2], 0.15)]
    with ThreadPoolExecutor(3) as pool:
        older, others, newer = pool.map(lambda job: ask(*job), jobs)
    assert (others.status_code, newer.status_code) == (200, 200)
    assert older.status_code in (200, 409)
    if older.status_code == 409:
        assert "newer" in older.json()["detail"]


def test_many_waiting_clicks_do_not_keep_others_out(folder_server):
    with ThreadPoolExecutor(48) as pool, user(folder_server) as other:
        clicks = [
            pool.submit(lambda n: click(user(folder_server), [CENTRE], client_id=f"u{n}").status_code, n)
            for n in range(48)
        ]
        assert other.get("/info/", timeout=5).status_code == 200
        assert {one.result() for one in clicks} == {200}


@pytest.mark.parametrize("how", ["stopped", "deaf"])
def test_a_store_that_is_gone_is_said_and_does_not_take_the_server_with_it(
    how, start, new_orthanc, demo_spine
):
    import os
    import signal

    from medsa.demo.studies import stow

    orthanc: Orthanc = new_orthanc()
    stow(orthanc.dicomweb_url, demo_spine.datasets)
    server = start(
        orthanc.dicomweb_url, MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT="2", MONAI_LABEL_DICOMWEB_READ_TIMEOUT="2"
    )
    with user(server) as client:
        assert client.get("/proxy/dicom/qido/studies").json()
        if how == "stopped":
            orthanc.stop()
        else:
            os.kill(orthanc.pid, signal.SIGSTOP)
        try:
            for method, path in (
                ("GET", "/proxy/dicom/qido/studies"),
                ("GET", f"/proxy/dicom/wado/studies/{demo_spine.study_uid}/metadata"),
                ("GET", "/datastore/?output=all"),
                ("POST", "/activelearning/random"),
            ):
                answer = client.request(method, path, timeout=60)
                assert answer.status_code in (200, 502, 503, 504), (path, answer.text)
                if "proxy" in path:
                    assert answer.status_code in (503, 504)
                    assert "store" in answer.json()["detail"]
            started = time.perf_counter()
            assert client.get("/info/").status_code == 200
            assert time.perf_counter() - started < 2
        finally:
            if how == "deaf":
                os.kill(orthanc.pid, signal.SIGCONT)
    assert "DEMO" not in server.log.read_text()


def test_a_server_starts_while_its_store_is_down_and_finds_it_later(start, tmp_path, demo_spine, new_orthanc):
    from medsa.demo.studies import stow

    orthanc = new_orthanc()
    stow(orthanc.dicomweb_url, demo_spine.datasets)
    port, url = orthanc.port, orthanc.dicomweb_url
    orthanc.stop()
    server = start(url)
    with user(server) as client:
        assert client.get("/info/").json()["datastore"]["total"] == 0
        with Orthanc(orthanc.folder, port=port):
            answer = client.get("/datastore/?output=stats", timeout=60)
            assert answer.json()["total"] == 1


def test_a_restart_loses_nothing_that_was_saved(start, new_orthanc, demo_abdomen):
    from medsa.data.dicom import volume_from_datasets
    from medsa.data.write import nrrd_bytes
    from medsa.demo.studies import stow

    orthanc = new_orthanc()
    stow(orthanc.dicomweb_url, demo_abdomen.datasets)
    mask = demo_abdomen.truth["liver"].astype("uint8", order="F")
    content = nrrd_bytes(mask, volume_from_datasets(demo_abdomen.datasets))
    server = start(orthanc.dicomweb_url)
    image = demo_abdomen.series_uid
    with user(server) as client:
        saved = client.put(
            f"/datastore/label?image={image}",
            data={"params": '{"label_info": [{"name": "liver", "idx": 1}]}'},
            files={"label": ("label.nrrd", content)},
        )
        assert saved.status_code == 200, saved.text
        address = {"label": saved.json()["label"], "tag": "final"}
        before = client.get("/datastore/label", params=address).content
        session = client.put("/session/", files={"files": ("a.nrrd", content)}).json()["session_id"]
    server.stop()
    again = start(orthanc.dicomweb_url, MEDSA_CACHE=server.environment["MEDSA_CACHE"])
    with user(again) as client:
        assert client.get("/datastore/?output=stats").json()["completed"] == 1
        assert client.get("/datastore/label", params=address).content == before
        assert client.get(f"/session/{session}").status_code == 200
