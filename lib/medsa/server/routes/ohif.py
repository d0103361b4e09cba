"""/ohif/: the viewer that comes with MONAI Label, served without letting a path out of its folder."""

from __future__ import annotations

import re
from pathlib import Path

import monailabel.endpoints
from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from medsa.errors import NotFoundError

router = APIRouter(prefix="/ohif", tags=["Others"])

VIEWER = Path(monailabel.endpoints.__file__).parent / "static" / "ohif"
SETTINGS = "app-config.js"
OWN_ADDRESS = """
// The MONAI Label panel reads its server from this cookie, and without it assumes port 8000.
document.cookie = `MONAILABEL_SERVER_URL=${escape(window.location.origin + '/')}`;
"""
_HASHED = re.compile(r"[.-]?[0-9a-f]{20}\.")


@router.get("/{path:path}", include_in_schema=False)
def get_viewer(path: str) -> Response:
    """A file of the viewer; any address without an ending is one of the viewer's own pages."""
    if path == SETTINGS:
        settings = (VIEWER / SETTINGS).read_text("utf-8") + OWN_ADDRESS
        return Response(settings, media_type="text/javascript", headers={"Cache-Control": "no-cache"})
    file = (VIEWER / path).resolve() if "\0" not in path else VIEWER
    if file.is_file() and file.is_relative_to(VIEWER.resolve()):
        lasting = "public, max-age=31536000, immutable" if _HASHED.search(file.name) else "no-cache"
        return FileResponse(file, headers={"Cache-Control": lasting})
    if "." in path.rpartition("/")[2]:
        raise NotFoundError("the viewer has no such file")
    return FileResponse(VIEWER / "index.html", headers={"Cache-Control": "no-cache"})
