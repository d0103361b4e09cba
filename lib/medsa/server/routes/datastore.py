"""/datastore/: images and labels by their ids."""

from __future__ import annotations

import hashlib
import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Response, UploadFile
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from medsa.data.read import read_volume
from medsa.errors import BadInputError, NotFoundError
from medsa.server.auth import User
from medsa.server.automatic import NAME
from medsa.server.noted import checked_confidences, checked_names
from medsa.server.offers import LOCKED
from medsa.server.routes.common import Admin, Annotator, AnyUser, App, a_tag, an_id, user_info
from medsa.server.scratch import IMAGE_ENDINGS, LABEL_ENDINGS, ending, received

router = APIRouter(prefix="/datastore", tags=["Datastore"])

Params = Annotated[str, Form()]


class Output(StrEnum):
    """What to tell about the datastore."""

    TRAIN = "train"
    STATS = "stats"
    ALL = "all"


@router.get("/", summary="Counts, training pairs or everything")
def get_datastore(app: App, _user: AnyUser, output: Output = Output.STATS) -> Any:
    match output:
        case Output.ALL:
            return app.store.json()
        case Output.TRAIN:
            return app.store.datalist()
    return app.store.status()


@router.put("/", include_in_schema=False)
@router.put("/image", summary="Add an image")
def put_image(
    app: App, user: Annotator, file: Annotated[UploadFile, File()], image: str = "", params: Params = "{}"
) -> dict[str, str]:
    info = _note(params, user)
    suffix = ending(file.filename, IMAGE_ENDINGS)
    image = an_id(image or Path(file.filename or "").name[: -len(suffix)])
    if image in app.store.list_images():
        raise BadInputError("an image with this id is there already: choose another id")
    with received(file.file, file.filename, IMAGE_ENDINGS) as path:
        read_volume(path)
        return {"image": app.store.add_image(image, str(path), info)}


@router.delete("/", include_in_schema=False)
@router.delete("/image", summary="Remove an image and its labels")
def delete_image(app: App, _user: Admin, id: str) -> dict[str, str]:  # noqa: A002 - the client's name for it
    app.store.remove_image(an_id(id))
    return {}


@router.head("/image", summary="Is there such an image?")
def head_image(app: App, _user: AnyUser, image: str, check_sum: str = "") -> Response:
    path = _file(app.store.get_image_uri(an_id(image)), "image")
    if check_sum and not _has_checksum(path, check_sum):
        raise NotFoundError("the image has another checksum")
    return Response()


@router.get("/image", summary="Download an image")
def get_image(app: App, _user: AnyUser, image: str) -> FileResponse:
    return _download(_file(app.store.get_image_uri(an_id(image)), "image"))


@router.get("/image/info", summary="What is known of an image")
def get_image_info(app: App, _user: AnyUser, image: str) -> dict[str, Any]:
    return app.store.get_image_info(an_id(image))


@router.put("/image/info", summary="Note something about an image")
def put_image_info(app: App, user: Annotator, image: str, info: Params = "{}") -> dict[str, str]:
    app.store.update_image_info(an_id(image), _note(info, user))
    return {}


@router.put("/label", summary="Save a finished label")
def put_label(
    app: App,
    user: Annotator,
    image: str,
    label: Annotated[UploadFile, File()],
    params: Params = "{}",
    tag: str = "final",
) -> dict[str, Any]:
    tag, info = a_tag(tag), user_info(params, user)
    with received(label.file, label.filename, LABEL_ENDINGS) as path:
        label_id = app.store.save_label(an_id(image), str(path), tag, info)
    app.on_save_label(image, label_id)
    return {"image": image, "label": label_id}


@router.delete("/label", summary="Remove a label")
def delete_label(app: App, _user: Admin, id: str, tag: str) -> dict[str, str]:  # noqa: A002 - the client's name
    app.store.remove_label(an_id(id, "label"), a_tag(tag))
    app.counts.renew()
    return {}


@router.head("/label", summary="Is there such a label?")
def head_label(app: App, _user: AnyUser, tag: str, label: str = "", image: str = "") -> Response:
    _file(app.store.get_label_uri(an_id(label or image, "label"), a_tag(tag)), "label")
    return Response()


@router.get("/label", summary="Download a label")
def get_label(app: App, _user: AnyUser, label: str, tag: str) -> FileResponse:
    return _download(_file(app.store.get_label_uri(an_id(label, "label"), a_tag(tag)), "label"))


@router.get("/label/info", summary="What is known of a label")
def get_label_info(app: App, _user: AnyUser, label: str, tag: str) -> dict[str, Any]:
    return app.store.get_label_info(an_id(label, "label"), a_tag(tag))


@router.put("/label/info", summary="Note something about a label")
def put_label_info(app: App, user: Annotator, label: str, tag: str, info: Params = "{}") -> dict[str, str]:
    app.store.update_label_info(an_id(label, "label"), a_tag(tag), _note(info, user))
    return {}


@router.put("/updatelabelinfo", include_in_schema=False)
def put_label_info_old(
    app: App, user: Annotator, label: str, tag: str, params: Params = "{}"
) -> dict[str, str]:
    return put_label_info(app, user, label, tag, params)


@router.get("/dataset", summary="All images and labels as a zip archive")
def get_dataset(app: App, _user: Annotator, limit_cases: int | None = None) -> FileResponse:
    path = _file(app.store.get_dataset_archive(limit_cases), "dataset")
    gone = BackgroundTask(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename="dataset.zip", background=gone)


def _note(params: str, user: User) -> dict[str, Any]:
    """What is to be noted, with the user's name; raises `BadInputError` for what is of no use."""
    info = user_info(params, user)
    if "label_info" in info:
        checked_names(info["label_info"])
    if NAME in info:
        checked_confidences(info[NAME])
    if not isinstance(info.get(LOCKED, False), bool):
        raise BadInputError(f"{LOCKED} must be true or false")
    return info


def _file(uri: str, what: str) -> Path:
    path = Path(uri) if uri else None
    if path is None or not path.is_file():
        raise NotFoundError(f"there is no such {what} in the datastore, or it is not one file")
    return path


def _download(path: Path) -> FileResponse:
    return FileResponse(path, media_type="application/octet-stream", filename=path.name)


def _has_checksum(path: Path, expected: str) -> bool:
    algorithm, _, digest = expected.rpartition(":")
    algorithm = (algorithm or "SHA256").lower()
    if algorithm not in ("sha256", "sha512", "md5"):
        raise BadInputError("checksums are SHA256, SHA512 or MD5")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    return secrets.compare_digest(found.encode(), digest.lower().encode())
