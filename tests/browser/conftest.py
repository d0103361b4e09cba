"""A real Orthanc with three studies, the real server before it, and browsers of several users."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from itertools import count

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright
from pydicom.uid import generate_uid
from tests.browser.ohif import Viewer, launch, viewer

from medsa.demo.orthanc import Orthanc
from medsa.demo.server import Server
from medsa.demo.studies import DemoStudy, abdomen, brain, stow

SEEDS = count(1)


@dataclass(frozen=True)
class Site:
    """What runs: the store, the server, and the studies in it by name."""

    orthanc: Orthanc
    server: Server
    studies: dict[str, DemoStudy]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Orthanc with an MR brain, a drawn CT and a reversed coronal series, and `monailabel start_server`."""
    folder = tmp_path_factory.mktemp("site")
    ct = abdomen((160, 160, 40))
    studies = {"brain": brain(resolution=2), "abdomen": ct, "coronal": coronal_from_the_back(ct)}
    with Orthanc(folder / "orthanc") as orthanc:
        for study in studies.values():
            stow(orthanc.dicomweb_url, study.datasets)
        with Server(orthanc.dicomweb_url, folder / "server.log") as server:
            yield Site(orthanc, server, studies)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium; every user has a context of their own in it."""
    with sync_playwright() as playwright, launch(playwright) as chromium:
        yield chromium


@pytest.fixture
def new_user(browser: Browser, site: Site) -> Iterator[Callable[[], Viewer]]:
    """Opens a browser window for one more user."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(viewer(browser, site.server.url))


@pytest.fixture
def user(new_user: Callable[[], Viewer]) -> Viewer:
    """One user."""
    return new_user()


@pytest.fixture
def new_study(site: Site) -> Callable[[], DemoStudy]:
    """Puts a small drawn CT of a new patient into the store that no other test touches."""

    def make() -> DemoStudy:
        seed = next(SEEDS)
        study = abdomen((96, 96, 12), seed=seed)
        for dataset in study.datasets:
            dataset.PatientName, dataset.PatientID = f"DEMO^SMALL{seed}", f"DEMO-SMALL{seed}"
        stow(site.orthanc.dicomweb_url, study.datasets)
        return study

    return make


def coronal_from_the_back(study: DemoStudy) -> DemoStudy:
    """An axial `study` cut into coronal slices that are numbered from the patient's back to the front.

    Along their normal, row times column direction, the slices run from front to back: their order in the
    volume is the reverse of their numbers. `truth` is turned with them: (i, j, k) = (left, down, back).
    """
    first = study.datasets[0]
    size = (first.Rows, first.Columns)
    stored = [np.frombuffer(each.PixelData, "<u2").reshape(size) for each in study.datasets]
    volume = np.stack(stored)[::-1]  # (down, back, left)
    x, y, z = map(float, study.datasets[-1].ImagePositionPatient)
    step = z - float(study.datasets[-2].ImagePositionPatient[2])
    across, back = float(first.PixelSpacing[1]), float(first.PixelSpacing[0])
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    slices = []
    for k in range(volume.shape[1]):
        dataset = deepcopy(first)
        for name, uid in uids.items():
            setattr(dataset, name, uid)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.PatientName, dataset.PatientID = "DEMO^CORONAL", "DEMO-CORONAL"
        dataset.ImagePositionPatient = [x, y + k * back, z]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        dataset.PixelSpacing, dataset.SliceThickness = [step, across], back
        dataset.InstanceNumber = volume.shape[1] - k
        dataset.pop("SliceLocation", None)
        dataset.Rows, dataset.Columns = volume.shape[0], volume.shape[2]
        dataset.PixelData = np.ascontiguousarray(volume[:, k]).tobytes()
        slices.append(dataset)
    truth = {name: mask[:, :, ::-1].transpose(0, 2, 1) for name, mask in study.truth.items()}
    return DemoStudy("coronal", tuple(reversed(slices)), truth)
