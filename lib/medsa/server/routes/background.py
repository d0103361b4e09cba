"""/train, /scoring, /batch/infer: work that goes on while others are served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from medsa.errors import NotFoundError
from medsa.server.app import no_batch
from medsa.server.automatic import NAME as AUTOMATIC
from medsa.server.routes.common import Admin, Annotator, AnyUser, App
from medsa.server.train import NAME
from medsa.training.retrain import BusyError

router = APIRouter()

Params = dict[str, Any] | None


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
def scoring_status(app: App, _user: AnyUser, all: bool = False, check_if_running: bool = False) -> Any:  # noqa: A002 - client's
    scoring = app.scoring_here
    found = scoring.status(every=all) if scoring.running or not check_if_running else None
    if not found:
        raise NotFoundError("no scoring is running" if check_if_running else "there was no scoring yet")
    return found


@router.post("/scoring/", tags=["Scoring"], include_in_schema=False)
def score_all(app: App, _user: Annotator, params: Params = None) -> dict[str, Any]:
    given = {name: (params or {}).get(name) for name in app.scorers}
    started = app.scoring_here.start({n: one if isinstance(one, dict) else {} for n, one in given.items()})
    return {name: {"result": started, "detail": None} for name in app.scorers}


@router.post("/scoring/{method}", tags=["Scoring"], summary="Score what is new, in the background")
def score(app: App, _user: Annotator, method: str, params: Params = None) -> Any:
    return app.scoring_here.start({_known(app.scorers, method, "scoring method"): params})


@router.delete("/scoring/", tags=["Scoring"], summary="Stop the scoring")
def stop_scoring(app: App, _user: Annotator) -> Any:
    return app.scoring_here.stop()


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
