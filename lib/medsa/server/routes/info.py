"""GET /info/: models, options and counts, answered at once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from medsa.server.routes.common import AnyUser, App

router = APIRouter(prefix="/info", tags=["App"])


@router.get("/", summary="Models, labels, options and counts")
def get_info(app: App, _user: AnyUser) -> dict[str, Any]:
    return app.info()
