"""The panel's modules: they parse, and what they compute without a viewer is right (Node runs both)."""

import shutil
import subprocess
from pathlib import Path

import pytest

from medsa.server.viewer import OURS

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None, reason="Node is not installed; the browser tests run the same code"
)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(NODE), *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "file", sorted([*OURS.glob("*.mjs"), OURS / "app-config.js"]), ids=lambda path: path.name
)
def test_the_module_parses(file: Path) -> None:
    told = run("--check", file)
    assert told.returncode == 0, told.stderr


def test_what_the_panel_computes_is_right() -> None:
    told = run("--test", Path(__file__).with_name("ohif_modules.mjs"))
    assert told.returncode == 0, told.stdout
