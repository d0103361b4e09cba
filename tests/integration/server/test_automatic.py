"""Labels make the next studies' labels: through the server, one by one and in a batch, and by command."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import nibabel
import nrrd
import numpy as np
import pytest

from medsa.data.dicom import volume_from_datasets
from medsa.data.labels import load_labels
from medsa.data.read_label import read_label
from medsa.data.seg import write_seg
from medsa.demo.server import ROOT, Server
from medsa.demo.studies import abdomen, stow
from medsa.evaluation import dice

SHAPE = (48, 44, 5)
LIVER = load_labels().by_name("liver").index
PATIENCE = 600
AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])


def draw(seed: int, *, empty: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """A body with a bright wall and a bright organ, each time a little elsewhere, and the organ's mask."""
    random = np.random.default_rng(seed)
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")

    def inside(centre: np.ndarray, radii: tuple[float, ...]) -> np.ndarray:
        return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) < 1

    middle = np.array([23.5, 21.5, 2])
    organ = inside(middle + random.uniform(-1.5, 1.5, 3) * (1, 1, 0), (12, 9, 2.5)) & (not empty)
    wall = inside(middle, (23, 21, 99)) & ~inside(middle, (20, 18, 99))
    values = np.where(organ | wall, 180, 60) + random.normal(0, 6, SHAPE)
    return values.astype(np.int16), organ


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four studies with the object and, last, one without."""
    folder = tmp_path_factory.mktemp("studies")
    for seed, name in enumerate("abcde"):
        nibabel.save(nibabel.Nifti1Image(draw(seed, empty=name == "e")[0], AFFINE), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def client(
    studies: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    log = tmp_path_factory.mktemp("log") / "log"
    with (
        Server(str(studies), log, environment=environment) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE, trust_env=False) as client,
    ):
        yield client


def automatic(client: httpx.Client, image: str, **more: str) -> httpx.Response:
    """What OHIF sends for its Auto-Segmentation."""
    sent = {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, **more}
    return client.post(
        "/infer/medsa_auto",
        params={"image": image, "output": "image"},
        files={"params": (None, json.dumps(sent))},
    )


@pytest.fixture(scope="module")
def refused(client: httpx.Client) -> tuple[httpx.Response, dict]:
    """What is answered, and how a batch ends, while nobody has labelled anything."""
    answer = automatic(client, "c")
    client.post("/batch/infer/medsa_auto", json={"label": "liver"}).raise_for_status()
    return answer, wait(lambda: over(client))


@pytest.fixture(scope="module")
def taught(client: httpx.Client, refused: object, tmp_path_factory: pytest.TempPathFactory) -> httpx.Client:
    """A client of the server when a person has labelled the first two studies."""
    path = tmp_path_factory.mktemp("label") / "label.nii.gz"
    for seed, name in enumerate("ab"):
        nibabel.save(nibabel.Nifti1Image(draw(seed)[1].astype(np.uint8), AFFINE), path)
        client.put(
            "/datastore/label",
            params={"image": name},
            data={"params": json.dumps({"label_info": [{"name": "liver", "idx": 1}]})},
            files={"label": (path.name, path.read_bytes())},
        ).raise_for_status()
    return client


def mask_of(content: bytes, folder: Path) -> np.ndarray:
    path = folder / "mask.nrrd"
    path.write_bytes(content)
    return nrrd.read(str(path))[0]


def wait(condition: Callable[[], object]) -> object:
    """What `condition` says, as soon as it says something."""
    ends = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < ends
        time.sleep(0.1)
    return found


def test_without_a_labelled_study_the_client_is_told_what_to_do(refused) -> None:
    answer, ended = refused
    assert answer.status_code == 400
    assert "label one or two studies" in answer.json()["detail"]
    assert ended["status"] == "ERROR"
    assert "label one or two studies" in ended["details"][-1]


def over(client: httpx.Client) -> dict | None:
    task = client.get("/batch/infer").json()
    return task if task["status"] != "RUNNING" else None


def test_auto_segmentation_answers_with_the_labels_indices(taught: httpx.Client, tmp_path: Path) -> None:
    answer = automatic(taught, "c").raise_for_status()
    mask = mask_of(answer.content, tmp_path)
    assert set(np.unique(mask)) == {0, LIVER}
    assert dice(mask, draw(2)[1]) > 0.8
    told = taught.post(
        "/infer/medsa_auto",
        params={"image": "c", "output": "json"},
        files={"params": (None, json.dumps({"label": "liver"}))},
    ).json()
    assert told["label_names"] == {"liver": LIVER}
    assert 0 < told["confidences"]["liver"] <= 1
    nothing = automatic(taught, "e", label="liver").raise_for_status()
    assert not mask_of(nothing.content, tmp_path).any()
    assert "stomach" in automatic(taught, "c", label="stomach").json()["detail"]


def test_a_batch_annotates_what_nobody_has_labelled_and_counts_as_nobody_s(taught: httpx.Client) -> None:
    before = taught.get("/datastore/").json()
    started = taught.post("/batch/infer/medsa_auto", json={"label": "liver", "label_tag": "original"})
    assert started.json()["status"] == "RUNNING"
    assert taught.get("/info/").status_code == 200
    ended = wait(lambda: over(taught))
    assert ended["status"] == "DONE", ended
    assert set(ended["result"]) == {"c", "d", "e"}
    for image, sure in (("c", True), ("d", True), ("e", False)):
        assert (ended["result"][image]["confidence"] > 0) == sure
        found = taught.head("/datastore/label", params={"label": image, "tag": "original"})
        assert (found.status_code == 200) == sure
    assert taught.get("/datastore/label/info", params={"label": "c", "tag": "original"}).json()["confidences"]

    assert taught.get("/datastore/").json() == before
    assert {Path(pair["image"]).name for pair in taught.get("/datastore/?output=train").json()} == {
        "a.nii.gz",
        "b.nii.gz",
    }
    assert taught.get("/medsa/status").json()["labels"] == 2
    assert taught.post("/activelearning/random").json()["id"] in "cde"
    taught.post("/batch/infer/medsa_auto", json={"label": "liver"}).raise_for_status()
    assert wait(lambda: over(taught))["progress"] == {"done": 0, "total": 0}


def test_a_killed_annotation_goes_on(studies: Path, environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "labels" / "final").mkdir(parents=True)
    for seed, name in enumerate("abcd"):
        shutil.copy(studies / f"{name}.nii.gz", folder)
        if name in "ab":
            label = nibabel.Nifti1Image((draw(seed)[1] * LIVER).astype(np.uint8), AFFINE)
            nibabel.save(label, folder / "labels" / "final" / f"{name}.nii.gz")
    own = {**os.environ, **environment, "MEDSA_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "medsa.cli", "annotate", "--studies", str(folder), "--label", "liver"]
    kept = folder / "labels" / "original"

    with subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.DEVNULL) as process:
        wait(lambda: process.poll() is not None or (folder / "labels" / ".info" / "c.json").is_file())
        process.send_signal(signal.SIGKILL)
    first = (kept / "c.nii.gz").stat().st_mtime_ns
    ended = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert (kept / "c.nii.gz").stat().st_mtime_ns == first
    assert {path.name for path in kept.glob("[!.]*")} == {"c.nii.gz", "d.nii.gz"}
    shown = nibabel.load(kept / "d.nii.gz").get_fdata()
    assert dice(shown == LIVER, draw(3)[1]) > 0.8


def test_the_series_of_a_dicom_store_are_annotated_too(new_orthanc, environment, tmp_path: Path) -> None:
    orthanc = new_orthanc()
    studies = [abdomen((64, 64, 8), seed=seed) for seed in range(40, 43)]
    for study in studies:
        stow(orthanc.dicomweb_url, study.datasets)
    volume = volume_from_datasets(studies[0].datasets)
    liver = np.asfortranarray(studies[0].truth["liver"], np.uint8)
    stow(orthanc.dicomweb_url, [write_seg(liver, volume, load_labels(), names={1: "liver"})])
    own = {**os.environ, **environment, "MEDSA_CACHE": str(tmp_path), "MEDSA_DATA": str(tmp_path / "data")}
    command = [sys.executable, "-m", "medsa.cli", "annotate", "--studies", orthanc.dicomweb_url]
    command += ["--label", "liver", "--labels", "abdomen"]

    def run() -> str:
        ended = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=PATIENCE)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert "2 studies looked through, 2 annotated" in run()
    assert "0 studies looked through" in run()
    found = [read_label(path, volume) == 6 for path in tmp_path.glob("dicomweb/*/labels/original/*.nii.gz")]
    assert len(found) == 2
    for study in studies[1:]:
        assert max(dice(mask, study.truth["liver"]) for mask in found) > 0.6
    listed = httpx.get(f"{orthanc.dicomweb_url}/series", params={"Modality": "SEG"}, trust_env=False).json()
    assert len(listed) == 1  # what no person has looked at is not put into the store
