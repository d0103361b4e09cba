"""What is pinned can be installed on the oldest Python that medsa says it runs on."""

import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]


def test_every_package_takes_the_oldest_python_that_we_promise() -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    oldest = f"{promised.removeprefix('>=')}.0"  # Debian 12 has 3.11.2
    refused = [
        f"{one.name} {one.version}"
        for one in distributions()
        if not SpecifierSet(one.metadata.get("Requires-Python", "")).contains(oldest)
    ]
    assert not refused
