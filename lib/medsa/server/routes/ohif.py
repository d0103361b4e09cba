"""/ohif/: the viewer that comes with MONAI Label and our panel in it; no path leads out of their folders."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from medsa.errors import NotFoundError
from medsa.server import viewer

router = APIRouter(prefix="/ohif", tags=["Others"])

CHANGED = viewer.changed_files()
FRESH = {"Cache-Control": "no-cache"}
_HASHED = re.compile(r"[.-]?[0-9a-f]{20}\.")
_KINDS = {".mjs": "text/javascript", ".js": "text/javascript", ".css": "text/css"}


@router.get("/{path:path}", include_in_schema=False)
def get_viewer(path: str) -> Response:
    """A file of the viewer; any address without an ending is one of the viewer's own pages."""
    if path in CHANGED and path != viewer.PAGE:
        return Response(CHANGED[path], media_type=_KINDS[Path(path).suffix], headers=FRESH)
    if path.startswith(viewer.PANEL):
        file = _inside(viewer.OURS, path.removeprefix(viewer.PANEL))
        if file is None:
            raise NotFoundError("the panel has no such file")
        return FileResponse(file, media_type=_KINDS.get(file.suffix), headers=FRESH)
    file = _inside(viewer.FOLDER, path)
    if file is not None and path != viewer.PAGE:
        lasting = "public, max-age=31536000, immutable" if _HASHED.search(file.name) else "no-cache"
        return FileResponse(file, headers={"Cache-Control": lasting})
    if "." in path.rpartition("/")[2] and path != viewer.PAGE:
        raise NotFoundError("the viewer has no such file")
    return Response(viewer.page_at(CHANGED[viewer.PAGE], path), media_type="text/html", headers=FRESH)


def _inside(folder: Path, path: str) -> Path | None:
    """The file at `path` in `folder`, if there is one and it lies inside."""
    file = (folder / path).resolve() if "\0" not in path else folder
    return file if file.is_file() and file.is_relative_to(folder.resolve()) else None
