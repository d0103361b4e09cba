"""POST /activelearning/{strategy}: the next image to label."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from medsa.server import auth
from medsa.server.routes.common import AnyUser, App
from medsa.server.routes.infer import recognise, who

router = APIRouter(prefix="/activelearning", tags=["ActiveLearning"])


@router.post("/{strategy}", summary="The next image to label; no id when there is none")
def next_sample(
    request: Request,
    response: Response,
    app: App,
    user: AnyUser,
    strategy: str,
    params: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The image's id and what is known of it; its path on disk for clients on the same machine only."""
    name, cookie = who(request, user, (params or {}).get("client_id"))
    recognise(request, response, cookie)
    found = app.next_sample({**(params or {}), "strategy": strategy, "who": name})
    if "id" not in found:
        return found
    info = app.store.get_image_info(found["id"])
    here = auth.is_loopback(request.client.host if request.client else None)
    path = {"path": app.store.get_image_uri(found["id"])} if here and app.store_is_local else {}
    return {**info, **found, **path}
