"""A real Orthanc for the whole run, filled with the demo studies; and a fresh one for tests that break it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medsa.demo.orthanc import Orthanc
from medsa.demo.studies import DemoStudy, abdomen, brain, spine, stow

SMALL = (64, 64, 20)


@pytest.fixture(scope="session")
def demo_abdomen() -> DemoStudy:
    """A small drawn CT (64 x 64 x 20)."""
    return abdomen(SMALL)


@pytest.fixture(scope="session")
def demo_brain() -> DemoStudy:
    """The MNI152 brain as MR, 2 mm."""
    return brain(resolution=2)


@pytest.fixture(scope="session")
def demo_spine() -> DemoStudy:
    """pydicom's real CT slice."""
    return spine()


@pytest.fixture(scope="session")
def orthanc(
    tmp_path_factory: pytest.TempPathFactory,
    demo_abdomen: DemoStudy,
    demo_brain: DemoStudy,
    demo_spine: DemoStudy,
) -> Iterator[Orthanc]:
    """One Orthanc with the three demo studies; tests add to it, and take nothing away."""
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        for study in (demo_abdomen, demo_brain, demo_spine):
            stow(server.dicomweb_url, study.datasets)
        yield server


@pytest.fixture
def new_orthanc(tmp_path: Path) -> Iterator[Callable[..., Orthanc]]:
    """Starts an empty Orthanc in this test's folder (again, when called again), and ends it with the test."""
    started: list[Orthanc] = []

    def start(**options: object) -> Orthanc:
        server = Orthanc(tmp_path / "orthanc", **options).start()  # type: ignore[arg-type]
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()
