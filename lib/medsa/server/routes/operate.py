"""/logs/ and /reload: for whoever runs the server."""

from __future__ import annotations

import shutil
import subprocess
from collections import deque
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse
from monailabel.config import settings

from medsa.errors import NotFoundError
from medsa.server.routes.common import Admin, App

router = APIRouter(tags=["Others"])


@router.get("/logs/", summary="The last lines of the server's log")
def get_logs(_user: Admin, lines: Annotated[int, Query(ge=1, le=100_000)] = 300) -> PlainTextResponse:
    log = Path(settings.MONAI_LABEL_APP_DIR) / "logs" / "app.log"
    if not log.is_file():
        raise NotFoundError("this server writes no log file")
    with log.open(encoding="utf-8", errors="replace") as file:
        return PlainTextResponse("".join(deque(file, lines)))


@router.get("/logs/gpu", summary="What nvidia-smi tells")
def get_gpus(_user: Admin) -> PlainTextResponse:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise NotFoundError("this server has no NVIDIA graphics card, or no nvidia-smi")
    told = subprocess.run([tool], capture_output=True, text=True, timeout=20, check=False)
    return PlainTextResponse(told.stdout)


@router.post("/reload", include_in_schema=False)
def reload(app: App, _user: Admin) -> dict[str, str]:
    """Look at the datastore anew; the model and what users are doing stay."""
    app.store.refresh()
    app.counts.renew()
    return {}
