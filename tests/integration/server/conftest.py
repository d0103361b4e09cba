"""Real servers, started as a person starts them: over a folder of images, and over a real Orthanc."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from medsa.demo.orthanc import Orthanc
from medsa.demo.server import Server

SHAPE = (64, 56, 12)
CENTRE, RADII = (30, 24, 6), (16, 12, 4)


@dataclass(frozen=True)
class Drawn:
    """A folder with one drawn image, and the ellipsoid that can be seen in it.

    `around` lies a few floors above the folder; nobody else writes there.
    """

    around: Path
    folder: Path
    image: str
    truth: np.ndarray


class Client(httpx.Client):
    """Sends what OHIF and 3D Slicer send."""

    def ohif(
        self, image: str, foreground: Any = None, model: str = "medsa_2d", **params: Any
    ) -> httpx.Response:
        points = {} if foreground is None else {"foreground": foreground, "background": []}
        sent = {
            **points,
            "result_extension": ".nrrd",
            "result_dtype": "uint8",
            "result_compress": False,
            "restore_label_idx": False,
            **params,
        }
        return self.post(
            f"/infer/{model}",
            params={"image": image, "output": "image"},
            files={"params": (None, json.dumps(sent))},
        )

    def save(self, image: str, content: bytes, label: str = "liver", **kwargs: Any) -> httpx.Response:
        info = {"label_info": [{"name": label, "idx": 1}], "client_id": "test"}
        return self.put(
            "/datastore/label",
            params={"image": image, **kwargs},
            data={"params": json.dumps(info)},
            files={"label": ("label.nrrd", content)},
        )


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What all servers of a run share, so that compiled models are made once."""
    return {"MEDSA_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture
def start(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[..., Server]]:
    """Starts a server of one's own; all end with the test."""
    servers: list[Server] = []

    def begin(studies: object, conf: dict[str, str] | None = None, **more: str) -> Server:
        log = tmp_path / f"server{len(servers)}.log"
        server = Server(str(studies), log, conf=conf, environment={**environment, **more})
        servers.append(server)
        server.start()
        return server

    yield begin
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    around = tmp_path_factory.mktemp("around")
    folder = around / "one" / "two" / "three" / "studies"
    folder.mkdir(parents=True)
    grid = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    distance = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, CENTRE, RADII, strict=True))
    truth = distance < 1
    values = np.where(truth, 180, 40) + np.random.default_rng(0).normal(0, 6, SHAPE)
    affine = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 30], [0, 0, 3.0, -20], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), folder / "drawn.nii.gz")
    return Drawn(around, folder, "drawn", truth)


@pytest.fixture(scope="session")
def folder_server(
    drawn: Drawn, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server over the drawn folder."""
    with Server(str(drawn.folder), tmp_path_factory.mktemp("log") / "log", environment=environment) as server:
        yield server


@pytest.fixture(scope="session")
def orthanc_server(
    orthanc: Orthanc, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server over the Orthanc with the demo studies."""
    with Server(
        orthanc.dicomweb_url, tmp_path_factory.mktemp("log") / "log", environment=environment
    ) as server:
        yield server


@pytest.fixture
def client(folder_server: Server) -> Iterator[Client]:
    with Client(base_url=folder_server.url, timeout=120, trust_env=False) as client:
        yield client


@pytest.fixture
def viewer(orthanc_server: Server) -> Iterator[Client]:
    """A client of the server over Orthanc."""
    with Client(base_url=orthanc_server.url, timeout=120, trust_env=False) as client:
        yield client
