"""/ohif/: the viewer that comes with MONAI Label, served without letting a path out of its folder."""

from __future__ import annotations

import re

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from medsa.errors import NotFoundError
from medsa.server import viewer

router = APIRouter(prefix="/ohif", tags=["Others"])

CHANGED = viewer.changed_files()
_HASHED = re.compile(r"[.-]?[0-9a-f]{20}\.")


@router.get("/{path:path}", include_in_schema=False)
def get_viewer(path: str) -> Response:
    """A file of the viewer; any address without an ending is one of the viewer's own pages."""
    if path in CHANGED:
        return Response(CHANGED[path], media_type="text/javascript", headers={"Cache-Control": "no-cache"})
    file = (viewer.FOLDER / path).resolve() if "\0" not in path else viewer.FOLDER
    if file.is_file() and file.is_relative_to(viewer.FOLDER.resolve()):
        lasting = "public, max-age=31536000, immutable" if _HASHED.search(file.name) else "no-cache"
        return FileResponse(file, headers={"Cache-Control": lasting})
    if "." in path.rpartition("/")[2]:
        raise NotFoundError("the viewer has no such file")
    return FileResponse(viewer.FOLDER / "index.html", headers={"Cache-Control": "no-cache"})
