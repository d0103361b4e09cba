"""/train, /scoring, /batch/infer: work that goes on while others are served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException
from monailabel.utils.async_tasks.task import AsyncTask

from medsa.errors import NotFoundError
from medsa.server.app import no_batch
from medsa.server.automatic import NAME as AUTOMATIC
from medsa.server.routes.common import Admin, Annotator, AnyUser, App
from medsa.server.train import NAME
from medsa.training.retrain import BusyError

router = APIRouter()

Params = dict[str, Any] | None


def _status(method: str, every: bool, running: bool) -> Any:
    found, detail = AsyncTask.status(method, every, running)
    if found is None:
        raise NotFoundError(detail)
    return found


def _start(method: str, request: dict[str, Any], params: Params, enqueue: bool) -> Any:
    given = {name: value for name, value in (params or {}).items() if name not in request}
    started, detail = AsyncTask.run(method, request=request, params=given, enqueue=enqueue)
    if started is None:
        raise HTTPException(429, f"{detail.strip('+ ')}: wait for it to end, or stop it")
    return started


def _known(names: dict[str, Any], name: str, what: str) -> str:
    if name not in names:
        raise NotFoundError(
            f"there is no {what} '{name[:64]}'; this server has: {', '.join(names) or 'none'}"
        )
    return name


@router.get("/train/", tags=["Train"], summary="The last or running training; 404 when there is none")
def train_status(app: App, _user: AnyUser, all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002 - client's
    training = app.retraining.training
    found = training.status(every=all) if training.running or not check_if_running else None
    if not found:
        raise NotFoundError("no training is running" if check_if_running else "there was no training yet")
    return found


@router.post("/train/", tags=["Train"], include_in_schema=False)
def train_all(app: App, _user: Admin, params: Params = None) -> dict[str, Any]:
    asked = (params or {}).get(NAME)
    given = asked if isinstance(asked, dict) else None
    return {NAME: {"result": train(app, _user, NAME, given, enqueue=True), "detail": None}}


@router.post(
    "/train/{model}", tags=["Train"], summary="Retrain; with `enqueue` a running round is good enough"
)
def train(app: App, _user: Admin, model: str, params: Params = None, enqueue: bool = False) -> Any:
    _known(app.trainers, model, "trainer")
    try:
        return app.retraining.start(params)
    except BusyError:
        if not enqueue:
            raise
        return app.retraining.training.status()


@router.delete("/train/", tags=["Train"], summary="Stop the training")
def stop_training(app: App, _user: Admin) -> Any:
    return app.retraining.training.stop()


@router.get("/scoring/", tags=["Scoring"], summary="The last or running scoring; 404 when there is none")
def scoring_status(_user: AnyUser, all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002 - client's
    return _status("scoring", all, check_if_running)


@router.post("/scoring/", tags=["Scoring"], include_in_schema=False)
def score_all(app: App, _user: Annotator, params: Params = None) -> dict[str, Any]:
    return {
        name: {
            "result": _start("scoring", {"method": name}, (params or {}).get(name), enqueue=True),
            "detail": None,
        }
        for name in app.scorers
    }


@router.post("/scoring/{method}", tags=["Scoring"], summary="Score labels")
def score(app: App, _user: Annotator, method: str, params: Params = None) -> Any:
    return _start("scoring", {"method": _known(app.scorers, method, "scoring method")}, params, enqueue=False)


@router.delete("/scoring/", tags=["Scoring"], summary="Stop the scoring")
def stop_scoring(_user: Annotator) -> Any:
    return AsyncTask.stop("scoring")


@router.get("/batch/infer", tags=["Infer"], summary="The last or running batch; 404 when there is none")
def batch_status(app: App, _user: AnyUser, all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002 - client's
    found = app.batch.status(every=all) if app.batch.running or not check_if_running else None
    if not found:
        raise NotFoundError("no batch is running" if check_if_running else "there was no batch yet")
    return found


@router.post("/batch/infer/{model}", tags=["Infer"], summary="Annotate every image that nobody has labelled")
def batch(app: App, _user: Admin, model: str, images: str = "unlabeled", params: Params = None) -> Any:
    app.task(model)
    if model != AUTOMATIC:
        raise no_batch()
    return app.batch.start((params or {}).get("images", images), params)


@router.delete("/batch/infer", tags=["Infer"], summary="Stop the batch")
def stop_batch(app: App, _user: Admin) -> Any:
    return app.batch.stop()
