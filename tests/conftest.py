"""What every test may need: the real data where it is, and nothing that needs a network."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real medical sets; tests that need it say so and are skipped where it is not."""
    folder = Path(
        os.environ.get("MEDSA_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    )
    if not folder.is_dir():
        pytest.skip("the real data sets are not on this machine (MEDSA_SHARED_DATA)")
    return folder
