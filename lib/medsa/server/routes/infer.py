"""POST /infer/{model}: a click from OHIF, 3D Slicer or a script, a mask back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any

import anyio.to_thread
import numpy as np
from anyio import CapacityLimiter
from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse
from numpy.typing import NDArray

from medsa.data.read import read_volume
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.errors import BadInputError, NotFoundError
from medsa.server import auth, encode
from medsa.server.app import MedsaApp
from medsa.server.automatic import NAME as AUTOMATIC
from medsa.server.batch import ORIGINAL
from medsa.server.click import Click, read_params
from medsa.server.routes.common import AnyUser, App, an_id, owner
from medsa.server.scratch import IMAGE_ENDINGS, LABEL_ENDINGS, received
from medsa.server.store import FINAL
from medsa.server.tasks import Answer, Begin

router = APIRouter(prefix="/infer", tags=["Infer"])

COOKIE = "medsa_session"
_LIMITER = CapacityLimiter(16)
"""Clicks wait for the model in threads of their own, and never use up those of the other endpoints."""

STORED = "stored"
"""What `start` says for the newest mask that a person saved; else it names a segmentation of the image."""

_REFUSED = ("image", "model", "save_label", "label_tag", "session")


class Output(StrEnum):
    """What to send back; without one, the parameters and the image in a multipart form."""

    IMAGE = "image"
    JSON = "json"
    ALL = "all"
    DICOM_SEG = "dicom_seg"


@router.post("/wsi/{model}", include_in_schema=False)
@router.post("/wsi_v2/{model}", include_in_schema=False)
def whole_slide(model: str, _user: AnyUser) -> None:
    raise NotFoundError(
        f"whole-slide images are not offered by this server; '{model[:64]}' takes series and pictures"
    )


@router.post("/{model}", summary="The mask of the object that was clicked on")
async def infer(
    request: Request,
    app: App,
    user: AnyUser,
    model: str,
    image: str = "",
    session_id: str = "",
    params: Annotated[str, Form()] = "{}",
    file: Annotated[UploadFile | None, File()] = None,
    label: Annotated[UploadFile | None, File()] = None,
    output: Output = Output.ALL,
) -> Response:
    task, sent = app.task(model), _checked(read_params(params))
    name, cookie = who(request, user, sent.get("client_id"), session_id)

    def work() -> Response:
        volume, known_as = _volume(app, user, image, session_id, file)
        begin, more = _begin(app, image, volume, label)
        if known_as == image and model != AUTOMATIC:
            app.leases.clicked(image, name)
        answer, click = task.answer(volume, known_as, sent | more, name, begin)
        return _response(request, app, model, output, volume, answer, click)

    response = await anyio.to_thread.run_sync(work, limiter=_LIMITER)
    recognise(request, response, cookie)
    return response


def _checked(params: dict[str, Any]) -> dict[str, Any]:
    """`params` when they leave alone what the address says."""
    overridden = [key for key in _REFUSED if params.get(key)]
    if overridden:
        raise BadInputError(
            f"params may not set {overridden[0]}: it is part of the address, or done by its own request"
        )
    return params


def _volume(
    app: MedsaApp, user: auth.User, image: str, session_id: str, file: UploadFile | None
) -> tuple[Volume, str]:
    """The image that is meant, and the id under which clicks on it belong together."""
    if session_id:
        return app.uploads.volume(session_id, owner(user)), session_id
    if file is not None:
        with received(file.file, file.filename, IMAGE_ENDINGS) as path:
            return read_volume(path), secrets.token_hex(8)
    return app.store.volume(an_id(image)), image


def _begin(
    app: MedsaApp, image: str, volume: Volume, label: UploadFile | None
) -> tuple[Begin, dict[str, str]]:
    """Finds the mask that a client wants to correct; and the parameters that mean the one sent along."""
    if label is not None:
        with received(label.file, label.filename, LABEL_ENDINGS) as path:
            sent = read_label(path, volume, app.runtime.labels)
        named = f"sent {sha256(sent.tobytes(order='A')).hexdigest()}"
        return lambda _, name: _one_of(app, sent, {}, name), {"start": named}

    def begin(start: str, name: str) -> NDArray[np.bool_]:
        if not image:
            raise BadInputError("a mask that was saved belongs to an image of the datastore: send it along")
        if start == STORED:
            found = app.store.newest_label(an_id(image))
        else:
            found = app.store.segmentation(an_id(image), an_id(start, "segmentation"))
        if found is None:
            raise BadInputError("nobody has saved a mask of this image yet: leave start away")
        return _one_of(app, *found, name)

    return begin, {}


def _one_of(app: MedsaApp, mask: NDArray[np.uint8], names: Mapping[int, str], name: str) -> NDArray[np.bool_]:
    """Where a label map holds the label `name`.

    A map without `names` goes by the server's label set, unless it holds one value alone.
    """
    known = names or app.runtime.labels.names
    values = [value for value, other in known.items() if other.casefold() == name.casefold()]
    held = np.unique(mask[mask != 0])
    if len(held) == 1 and not (name and names):
        values = held.tolist()
    found = np.isin(mask, values)
    if not found.any():
        what = f"nothing of {name}" if name else "several labels: say which one is meant with label"
        raise BadInputError(f"the mask to begin with holds {what}")
    return found


def who(request: Request, user: auth.User, client_id: object, session_id: str = "") -> tuple[str, str]:
    """Whose clicks these are, and a new cookie for a browser that has none.

    Without a login, people at one address (two browsers on one machine) are told apart by a cookie that
    means nothing outside; 3D Slicer sends a `client_id`, other clients a session id or only their address.
    """
    name, client = f"{user.name}|{session_id}", str(client_id or "")[:256]
    known = request.cookies.get(COOKIE, "")
    if known:
        return f"{name}|{known[:64]}|{client}", ""
    if "sec-fetch-mode" in request.headers:
        fresh = secrets.token_hex(16)
        return f"{name}|{fresh}|{client}", fresh
    return f"{name}|{request.client.host if request.client else ''}|{client}", ""


def recognise(request: Request, response: Response, cookie: str) -> None:
    """Give a browser the new cookie that `who` found, if there is one."""
    if cookie:
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", secure=secure)


def _response(
    request: Request, app: MedsaApp, model: str, output: Output, volume: Volume, answer: Answer, click: Click
) -> Response:
    if output is Output.JSON:
        return JSONResponse(answer.params)
    if output is Output.DICOM_SEG:
        names = {value: name for name, value in answer.params["label_names"].items()}
        names |= dict(enumerate(click.label_info[:1], start=1))
        tag = ORIGINAL if model == AUTOMATIC else FINAL  # what nobody looked at is no human label
        seg = encode.seg_bytes(answer.mask, volume, app.runtime.labels, names, f"medsa {model}", tag)
        return encode.compressed(encode.file(seg, ".dcm", "application/dicom"), request)
    mask, params = answer.mask, answer.params
    if click.crop:
        mask, first, volume = encode.cropped(mask, volume)
        params = {**params, "first_slice": first}
    content = encode.mask_bytes(mask, volume, click.extension)
    if output is Output.IMAGE:
        return encode.compressed(encode.file(content, click.extension), request)
    return encode.compressed(encode.multipart(params, content, click.extension), request)
