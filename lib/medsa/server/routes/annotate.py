"""/medsa/: what our panel in OHIF asks besides MONAI Label's own endpoints: labels, what the store holds."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from medsa.server import encode
from medsa.server.routes.common import Annotator, AnyUser, App, an_id
from medsa.server.routes.infer import who

router = APIRouter(prefix="/medsa", tags=["Annotate"])


class NewLabel(BaseModel):
    """What to call it."""

    name: str


@router.get("/labels", summary="The labels one may choose: names, mask values, colours")
def get_labels(app: App, _user: AnyUser) -> dict[str, Any]:
    return {"labels": [_shown(label) for label in app.runtime.labels.labels]}


@router.post("/labels", summary="One more label; the same one when there is one of this name")
def post_label(app: App, _user: Annotator, label: NewLabel) -> dict[str, Any]:
    return _shown(app.add_label(label.name))


@router.get("/progress", summary="How far the volume is that this client waits for")
def get_progress(
    request: Request, app: App, user: AnyUser, image: str, label: str, client_id: str = ""
) -> dict[str, int]:
    done, most = app.runtime.progress(who(request, user, client_id)[0], image, label) or (0, 0)
    return {"done": done, "most": most}


@router.get("/segmentations", summary="The segmentations of an image in the datastore, newest first")
def get_segmentations(app: App, _user: AnyUser, image: str) -> dict[str, Any]:
    return {"segmentations": app.store.segmentations(an_id(image))}


@router.get("/segmentations/{segmentation}", summary="One of them, as a label map on the image's grid")
def get_segmentation(request: Request, app: App, _user: AnyUser, segmentation: str, image: str) -> Response:
    """`params` and `image` as /infer/ answers them: NRRD of the slices that hold something.

    Values are indices of the label set; labels that it does not have come with values of their own.
    """
    mask, names = app.store.segmentation(an_id(image), an_id(segmentation, "segmentation"))
    part, first, volume = encode.cropped(mask, app.store.volume(image))
    labels = [_named(app, value, name) for value, name in names.items()]
    content = encode.mask_bytes(part, volume, ".nrrd")
    params = {"first_slice": first, "labels": labels}
    return encode.compressed(encode.multipart(params, content, ".nrrd"), request)


def _named(app: App, value: int, name: str) -> dict[str, Any]:
    known = app.runtime.labels.find(name)
    return _shown(known) if known else {"name": name, "index": value, "color": [255, 196, 0]}


def _shown(label: Any) -> dict[str, Any]:
    return {"name": label.name, "index": label.index, "color": list(label.color)}
