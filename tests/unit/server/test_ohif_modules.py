"""The panel in OHIF: the linter has nothing against its modules, and what they compute is right."""

import subprocess
import sys
from pathlib import Path

import playwright

from medsa.server.viewer import OURS

ROOT = Path(__file__).parents[3]
LINTER = Path(sys.executable).with_name("oxlint")
NODE = Path(playwright.__file__).with_name("driver") / "node"


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=ROOT
    )


def test_the_linter_has_nothing_against_the_modules() -> None:
    told = run(LINTER, "--deny-warnings", OURS, "tests")
    assert told.returncode == 0, told.stdout
    assert f"{len([*OURS.glob('*.*js'), *(ROOT / 'tests').rglob('*.mjs')])} files" in told.stdout


def test_the_linter_would_find_a_misspelt_name(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.mjs"
    wrong.write_text("export const half = valeu => value / 2;\n")
    told = run(LINTER, "--config", ROOT / ".oxlintrc.json", wrong)
    assert told.returncode != 0
    assert "'value' is not defined" in told.stdout


def test_what_the_panel_computes_is_right() -> None:
    told = run(NODE, "--test", Path(__file__).with_name("ohif_modules.mjs"))
    assert told.returncode == 0, told.stdout
