"""The loop closed: labels saved in a real store become a better model by themselves; wrong labels do not."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import nrrd
import numpy as np
import psutil
import pytest
import torch
import yaml
from numpy.typing import NDArray

from medsa.config import CONFIGS
from medsa.data.dicom import volume_from_datasets
from medsa.data.labels import load_labels
from medsa.data.seg import write_seg
from medsa.data.write import write_mask
from medsa.demo.server import Server
from medsa.demo.studies import DemoStudy, _series, stow
from medsa.evaluation import dice
from medsa.prompts.annotator import first_click
from medsa.sam import Backbone, build_sam
from medsa.training.retrain import splits_of
from medsa.training.versions import VersionStore

SHAPE = (64, 60, 6)
AFTER = 6
NAMES = ("lesion", "liver")
LABELS = load_labels()
SMALL = Backbone(
    name="small",
    title="A small model with random weights, which learns in seconds",
    architecture={"kind": "vit", "width": 64, "depth": 3, "heads": 4, "global_blocks": [2], "window": 4},
    decoder={"width": 64, "heads": 4, "mlp": 128},
    image_size=64,
    trained_prompts=("point", "box"),
    parameters=1,
    licence="Apache-2.0",
    source="random",
    weights={"file": "small.pth"},
)


def discs(name: str, patient: str) -> DemoStudy:
    """Two discs of coarse grain on an even ground: one is the lesion, the other the liver."""
    rng = np.random.default_rng(sum(name.encode()))
    i, j = np.ogrid[: SHAPE[0], : SHAPE[1]]
    centres = [(rng.uniform(14, 22), rng.uniform(14, 46)), (rng.uniform(42, 50), rng.uniform(14, 46))]
    truth = {}
    for label, (x, y) in zip(NAMES, centres[:: rng.choice([-1, 1])], strict=True):
        disc = (i - x) ** 2 + (j - y) ** 2 < rng.uniform(8, 12) ** 2
        truth[label] = np.repeat(disc[..., None], SHAPE[2], axis=2)
    grain = rng.choice([-1.0, 1.0], (SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2])).repeat(2, 0).repeat(2, 1)
    values = 1000 + 600 * sum(truth.values()) * grain + rng.normal(0, 40, SHAPE)
    datasets = _series(
        "abdomen",
        name,
        values.clip(0, 4095).astype(np.uint16),
        origin=(0, 0, 0),
        spacing=(1.5, 1.5, 4),
        modality="MR",
        body_part="BRAIN",
        description="Drawn discs",
        window=(1000, 2000),
    )
    for dataset in datasets:
        dataset.PatientID, dataset.PatientName = patient, f"DISC^{patient}"
    return DemoStudy(name, datasets, truth)


def corners(study: DemoStudy) -> DemoStudy:
    """The same study with labels that have nothing to do with what can be seen."""
    i, j, k = np.indices(SHAPE)
    return replace(study, truth={NAMES[0]: i + j + 0 * k < 24, NAMES[1]: i + j > 100})


def mask_of(study: DemoStudy, values: dict[str, int]) -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8, order="F")
    for label, truth in study.truth.items():
        mask[truth] = values[label]
    return mask


class Client(httpx.Client):
    """An annotator's program."""

    scratch: Path

    def save(self, study: DemoStudy) -> None:
        """As 3D Slicer does: a file on the image's grid, and the names of its values."""
        path = self.scratch / f"{study.name}.nii.gz"
        values = {label: value for value, label in enumerate(NAMES, start=1)}
        write_mask(path, mask_of(study, values), volume_from_datasets(study.datasets))
        info = [{"name": label, "idx": value} for label, value in values.items()]
        self.put(
            "/datastore/label",
            params={"image": study.series_uid},
            data={"params": json.dumps({"label_info": info})},
            files={"label": (path.name, path.read_bytes())},
        ).raise_for_status()

    def click(self, study: DemoStudy) -> float:
        """Dice of the answers to one click in the middle of each object of a study."""
        found, k = [], SHAPE[2] // 2
        for truth in (truth[:, :, k] for truth in study.truth.values()):
            sent = {"foreground": [[*first_click(truth).index, k]], "result_extension": ".nrrd"}
            answer = self.post(
                "/infer/medsa_2d",
                params={"image": study.series_uid, "output": "image"},
                files={"params": (None, json.dumps(sent))},
            ).raise_for_status()
            path = self.scratch / "mask.nrrd"
            path.write_bytes(answer.content)
            found.append(dice(nrrd.read(str(path))[0][:, :, k], truth))
        return float(np.mean(found))

    def status(self) -> dict:
        return self.get("/medsa/status").raise_for_status().json()

    def wait(self, condition, seconds: float = 600) -> dict:
        """The status as soon as `condition` holds of it."""
        ends = time.monotonic() + seconds
        while not condition(status := self.status()):
            assert time.monotonic() < ends, status
            time.sleep(0.5)
        return status

    def ended(self, rounds: int) -> dict:
        """The status when so many rounds have ended and used every label."""

        def done(status):
            answer = self.get("/train/", params={"all": True})
            tasks = answer.json() if answer.status_code == 200 else []
            over = len(tasks) == rounds and all(task["status"] != "RUNNING" for task in tasks)
            return over and not status["new_labels"]

        return self.wait(done)


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    """The environment of a server that has a small backbone, learns fast and forgives boxes and volumes."""
    configs, cache = tmp_path / "configs", tmp_path / "cache"
    shutil.copytree(CONFIGS, configs)
    (cache / "weights").mkdir(parents=True, mode=0o700)
    torch.manual_seed(0)
    sam = build_sam(SMALL)
    for name, parameter in sam.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            parameter.data.normal_(std=0.5)
    torch.save(sam.state_dict(), cache / "weights" / "small.pth")
    (configs / "backbones" / "small.yaml").write_text(yaml.safe_dump(SMALL.model_dump(mode="json")))
    gate = {"label_loss": 0.3, "volume_loss": 1.0, "forgetting": 0.3, "deafness": 0.9}
    for kind, changed in (
        ("training", {"rate": 2e-3, "ema": 0.98}),
        ("retraining", {"rehearsal": 0, "steps": 400, "gate": gate}),
    ):
        path = configs / kind / "default.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changed))
    return {"MEDSA_CONFIGS": str(configs), "MEDSA_CACHE": str(cache)}


@pytest.fixture
def served(new_orthanc, small: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, Server, Client, Path]]:
    """An Orthanc, a server that retrains after a few labels, a client, and the folder of versions."""
    orthanc = new_orthanc()
    versions = tmp_path / "versions"
    versions.mkdir(mode=0o700)
    conf = {"adapters": str(versions), "retrain_after": str(AFTER), "retrain_minutes": "30"}
    conf |= {"backbone": "small"}
    with (
        Server(orthanc.dicomweb_url, tmp_path / "log", conf=conf, environment=small) as server,
        Client(base_url=server.url, timeout=300, trust_env=False) as client,
    ):
        client.scratch = tmp_path
        yield orthanc.dicomweb_url, server, client, versions


def test_labels_make_the_next_click_better_and_wrong_ones_do_not(served, tmp_path):
    store, server, client, versions = served
    known = [discs(f"known{n}", f"P{n}") for n in range(AFTER)]
    unseen = [discs(f"unseen{n}", f"U{n}") for n in range(4)]
    for study in (*known, *unseen):
        stow(store, study.datasets)

    before = np.mean([client.click(study) for study in unseen])
    assert client.status()["round"] is None
    for study in known:
        client.save(study)
    status = client.ended(1)
    assert status["last_decision"]["promoted"], status["last_decision"]["reasons"]
    assert status["version"] == "v0001"
    after = np.mean([client.click(study) for study in unseen])
    assert after > before + 0.1
    assert client.get("/info/").json()["retraining"]["figures"]["gain"] > 0
    assert "v0001" in client.get("/medsa/status.html").text

    sides = splits_of(VersionStore(versions)).assign(f"PatientID P{n}" for n in range(AFTER))
    patients = [name.removeprefix("PatientID ") for name, side in sides.items() if side == "training"]
    spoilt = [corners(known[int(patient.removeprefix("P"))]) for patient in patients]
    for study in spoilt:  # nothing right is left to learn from
        client.save(study)
    for n in range(AFTER - len(patients)):  # by a client that knows nothing of this server
        study = corners(discs(f"later{n}", patients[0]))
        stow(store, study.datasets)
        values = {label: LABELS.by_name(label).index for label in NAMES}
        volume = volume_from_datasets(study.datasets)
        stow(store, [write_seg(mask_of(study, values), volume, LABELS)])
        spoilt.append(study)
    status = client.ended(2)
    assert not status["last_decision"]["promoted"]
    assert status["version"] == "v0001"
    assert np.mean([client.click(study) for study in unseen]) == pytest.approx(after)
    assert VersionStore(versions).names() == ["v0001", "v0002"]

    log = (tmp_path / "log").read_text()
    assert "DISC" not in log
    assert not [study.series_uid for study in (*known, *spoilt) if study.series_uid in log]
    _a_round_is_stopped_and_ends_with_the_server(server, client, versions)


def _a_round_is_stopped_and_ends_with_the_server(server, client, versions):
    asked = {"again": True, "minutes": 30}
    assert client.post("/train/medsa", json={"minutes": "long"}).status_code == 400
    assert client.post("/train/medsa", json=asked).json()["status"] == "RUNNING"
    assert client.post("/train/medsa", json=asked).status_code == 429
    running = client.wait(lambda status: status["round"].get("progress"))
    assert client.get("/train/?check_if_running=true").json()["progress"].keys() == {"what", "part"}
    assert running["round"]["request"]["model"] == "medsa"
    assert client.delete("/train/").json()["status"] == "STOPPED"
    client.wait(lambda status: status["round"]["status"] == "STOPPED" and "end_ts" in status["round"])
    assert not list(versions.glob(".round-*"))

    client.post("/train/medsa", json=asked).raise_for_status()
    client.wait(lambda status: status["round"].get("progress"))
    children = [child for child in psutil.Process(server.pid).children(recursive=True) if _retrains(child)]
    assert children
    assert all(child.nice() >= 10 for child in children)
    for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]:
        if not _retrains(process):
            process.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert VersionStore(versions).current().name == "v0001"


def _retrains(process: psutil.Process) -> bool:
    return "retrain" in process.cmdline()
