"""/session/: an image that a client sends for a while, such as a file opened in 3D Slicer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, UploadFile
from fastapi.responses import FileResponse

from medsa.errors import BadInputError
from medsa.server.routes.common import AnyUser, App, owner
from medsa.server.uploads import Upload

router = APIRouter(prefix="/session", tags=["Session"])


@router.put("/", summary="Send an image")
def put_session(
    app: App,
    user: AnyUser,
    files: Annotated[list[UploadFile], File()],
    uncompress: bool = False,
    expiry: int = 0,
) -> dict[str, Any]:
    if not files:
        raise BadInputError("no file was sent")
    sent = [(file.filename or "", file.file) for file in files]
    upload = app.uploads.add(sent, owner(user), expiry, uncompress)
    return {"session_id": upload.name, "session_info": _shown(upload)}


@router.get("/{session_id}", summary="Is it still there? Or the image itself")
def get_session(
    app: App, user: AnyUser, session_id: str, update_ts: bool = False, image: bool = False
) -> Any:
    if image:
        path = app.uploads.path(session_id, owner(user))
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)
    return _shown(app.uploads.get(session_id, owner(user), touch=update_ts))


@router.delete("/{session_id}", summary="Delete it")
def delete_session(app: App, user: AnyUser, session_id: str) -> dict[str, Any]:
    return _shown(app.uploads.remove(session_id, owner(user)))


def _shown(upload: Upload) -> dict[str, Any]:
    return {
        "name": upload.name,
        "create_ts": upload.create_ts,
        "last_access_ts": upload.last_access_ts,
        "expiry": upload.expiry,
    }
