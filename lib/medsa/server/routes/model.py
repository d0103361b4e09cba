"""/model/: what the models are; their weights are neither given away nor taken over HTTP."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from medsa.errors import NotFoundError
from medsa.server.auth import ForbiddenError
from medsa.server.routes.common import Admin, App

router = APIRouter(prefix="/model", tags=["Model"])


@router.get("/info/{model}", summary="Backbone and checksum of a model")
def get_model_info(app: App, _user: Admin, model: str) -> dict[str, Any]:
    return app.model_info(model)


@router.get("/{model}", summary="Not offered: weights stay on the server")
def get_model(app: App, _user: Admin, model: str) -> None:
    app.task(model)
    raise NotFoundError(
        "weights are not sent over HTTP; `medsa backbones` tells where they lie on the server"
    )


@router.put("/{model}", summary="Not offered: weights are not taken from clients")
@router.delete("/{model}", summary="Not offered: weights are not removed by clients")
def change_model(app: App, _user: Admin, model: str) -> None:
    app.task(model)
    raise ForbiddenError(
        "models are not replaced or removed over HTTP; start the server with --conf backbone NAME"
    )
