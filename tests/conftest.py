"""What every test may need: the real data where it is, and nothing that needs a network."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def versions_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Versions that tests make lie in a folder of the run, not among those of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSA_DATA", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders compute in float32 on every CPU: for tests that compare to the last digit."""
    monkeypatch.setenv("MEDSA_PRECISION", "full")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real medical sets; tests that need it say so and are skipped where it is not."""
    folder = Path(
        os.environ.get("MEDSA_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip("the real data sets are not on this machine (MEDSA_SHARED_DATA)")
    return folder
