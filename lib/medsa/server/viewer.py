"""What medsa changes in the viewer's files as it serves them, and the check that it knows these files."""

from __future__ import annotations

from pathlib import Path

import monailabel.endpoints

from medsa.errors import ConfigurationError

FOLDER = Path(monailabel.endpoints.__file__).parent / "static" / "ohif"
OURS = Path(__file__).with_name("ohif")

PAGE = "index.html"
SETTINGS = "app-config.js"
PANEL = "medsa-panel/"
"""Addresses of our own files: /ohif/medsa-panel/NAME; the settings take the place of the viewer's."""

_STORES_SEGMENTATIONS = "7197.bundle.805c43530f838fa98d40.js"
_WORKERS = (
    "1927.bundle.40b115cd925087e88f6f.js",
    "histogram-worker.bundle.118d553b53a573660111.js",
    "polySeg.bundle.50d93b9ce5a52f05c879.js",
    "suv-peak-worker.bundle.14e55a14a63a983acccb.js",
)
_Changes = dict[str, str]

_CHANGES: dict[str, _Changes] = {
    # The viewer hands its slices to the writer of DICOM SEG in the reverse of the order that is expected.
    _STORES_SEGMENTATIONS: {
        "let z = 0;\n      for (const segImage of segImages) {": (
            "let z = 0;\n      const frames = window.medsaFrames(referencedImages);\n"
            "      for (const segImage of segImages) {"
        ),
        "labelmaps2D[z++] = {": "labelmaps2D[frames[z++]] = {",
    },
    # Workers look for their parts under /ohif/, also where a reverse proxy puts something before it.
    **{
        name: {
            '__webpack_require__.p = "/ohif/";': (
                '__webpack_require__.p = self.location.pathname.replace(/[^/]*$/, "");'
            )
        }
        for name in _WORKERS
    },
    # Fonts come from the system: nothing is fetched from elsewhere.
    "app.bundle.css": {
        "@import url(https://fonts.googleapis.com/css?family=Inter:100,300,400,500,700&display=swap);": "",
        "@import url(https://fonts.googleapis.com/css2?family=Inter:wght@100..900&display=swap);": "",
    },
    PAGE: {
        '<link rel="preconnect" href="https://fonts.gstatic.com" crossorigin/>': "",
        '<link href="https://fonts.googleapis.com/css?family=Inter:100,300,400,500,700&display=swap" '
        'rel="stylesheet" rel="preload" as="style"/>': "",
        "window.PUBLIC_URL = '/ohif/';": "window.PUBLIC_URL = new URL('/ohif/', location.href).pathname;",
    },
}
_UNKNOWN = "this version of MONAI Label brings another viewer than medsa knows"


def changed_files() -> dict[str, str]:
    """Name -> text of the files that are served differently; raises `ConfigurationError` for other ones."""
    return {
        SETTINGS: (OURS / SETTINGS).read_text("utf-8"),
        **{name: _changed(name, changes) for name, changes in _CHANGES.items()},
    }


def page_at(page: str, path: str) -> str:
    """The viewer's `page` for the address /ohif/`path`, its parts named relative to that address."""
    return page.replace("/ohif/", "../" * path.count("/") or "./")


def _changed(name: str, changes: _Changes) -> str:
    try:
        text = (FOLDER / name).read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"{_UNKNOWN}: it has no {name}") from None
    for old, new in changes.items():
        if text.count(old) != 1:
            raise ConfigurationError(f"{_UNKNOWN}: {name} is another, and masks might come out wrong")
        text = text.replace(old, new)
    return text
