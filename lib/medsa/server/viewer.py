"""What medsa changes in the viewer's files as it serves them, and the check that it knows these files."""

from __future__ import annotations

from pathlib import Path

import monailabel.endpoints

from medsa.errors import ConfigurationError

FOLDER = Path(monailabel.endpoints.__file__).parent / "static" / "ohif"
ADDED = Path(__file__).with_name("viewer.js")

_SETTINGS = "app-config.js"
_STORES_SEGMENTATIONS = "7197.bundle.805c43530f838fa98d40.js"
_CHANGES = {
    "let z = 0;\n      for (const segImage of segImages) {": (
        "let z = 0;\n      const frames = window.medsaFrames(referencedImages);\n"
        "      for (const segImage of segImages) {"
    ),
    "labelmaps2D[z++] = {": "labelmaps2D[frames[z++]] = {",
}
"""The viewer hands its slices to the writer of DICOM SEG in the reverse of the order that is expected."""
_UNKNOWN = "this version of MONAI Label brings another viewer than medsa knows"


def changed_files() -> dict[str, str]:
    """Name -> text of the files that are served differently; raises `ConfigurationError` for other ones."""
    try:
        settings, segmentations = (
            (FOLDER / name).read_text("utf-8") for name in (_SETTINGS, _STORES_SEGMENTATIONS)
        )
    except FileNotFoundError as error:
        raise ConfigurationError(f"{_UNKNOWN}: it has no {Path(error.filename).name}") from None
    for old, new in _CHANGES.items():
        if segmentations.count(old) != 1:
            raise ConfigurationError(
                f"{_UNKNOWN}: it stores segmentations otherwise, and they might come out mirrored"
            )
        segmentations = segmentations.replace(old, new)
    return {
        _SETTINGS: f"{settings}\n{ADDED.read_text('utf-8')}",
        _STORES_SEGMENTATIONS: segmentations,
    }
