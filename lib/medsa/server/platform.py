"""The one list of what medsa replaces in, or needs from, MONAI Label, and the check that it is still there.

The server process imports `monailabel.app` before the app's main.py; background tasks (training, scoring) run
in a new interpreter that loads main.py first and never imports `monailabel.app`. What must hold in both is
therefore an override in `MedsaApp`; only HTTP is replaced in the running FastAPI application, and only there.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from medsa.errors import ConfigurationError, MedsaError

if TYPE_CHECKING:
    from fastapi import FastAPI


class Symbol(NamedTuple):
    """An attribute of a MONAI Label module, dots for attributes of attributes."""

    module: str
    attribute: str
    why: str


_APP = "monailabel.interfaces.app"
_SETTINGS = [
    "API_STR",
    "APP_DIR",
    "STUDIES",
    "CORS_ORIGINS",
    "SESSIONS",
    "SESSION_PATH",
    "SESSION_EXPIRY",
    "AUTH_ENABLE",
    "AUTH_REALM_URI",
    "AUTH_TIMEOUT",
    "AUTH_CLIENT_ID",
    "AUTH_TOKEN_USERNAME",
    "AUTH_TOKEN_EMAIL",
    "AUTH_TOKEN_NAME",
    "AUTH_TOKEN_ROLES",
    "AUTH_ROLE_ADMIN",
    "AUTH_ROLE_REVIEWER",
    "AUTH_ROLE_ANNOTATOR",
    "AUTH_ROLE_USER",
    "DICOMWEB_USERNAME",
    "DICOMWEB_PASSWORD",
    "DICOMWEB_PROXY_TIMEOUT",
    "DICOMWEB_READ_TIMEOUT",
    "QIDO_PREFIX",
    "WADO_PREFIX",
    "STOW_PREFIX",
]

RELIED_ON: tuple[Symbol, ...] = (
    Symbol(
        _APP, "MONAILabelApp.init_datastore", "replaced: our datastores, and no download of dcmqi at start"
    ),
    Symbol(_APP, "MONAILabelApp.init_infers", "replaced: our models"),
    Symbol(_APP, "MONAILabelApp.init_trainers", "replaced: retraining"),
    Symbol(_APP, "MONAILabelApp.init_strategies", "replaced: strategies that survive a fresh datastore"),
    Symbol(_APP, "MONAILabelApp.init_scoring_methods", "replaced: scoring in the server, for our strategies"),
    Symbol(_APP, "MONAILabelApp.init_batch_infer", "replaced: the stock one divides by the number of GPUs"),
    Symbol(_APP, "MONAILabelApp._load_sessions", "replaced: uploads that cannot write outside their folder"),
    Symbol(_APP, "MONAILabelApp.cleanup_sessions", "called: removes expired uploads"),
    Symbol(_APP, "MONAILabelApp.on_init_complete", "replaced: no scoring of everything at every start"),
    Symbol(_APP, "MONAILabelApp.on_save_label", "replaced: no ids in the log, counts are renewed"),
    Symbol(_APP, "MONAILabelApp.next_sample", "replaced: no scoring after every request, no server path"),
    Symbol(_APP, "MONAILabelApp.info", "extended: options, and counts that are never waited for"),
    Symbol(_APP, "MONAILabelApp.model_info", "replaced: there is no file of weights to describe"),
    Symbol("monailabel.interfaces.datastore", "Datastore", "the interface of our datastores"),
    Symbol("monailabel.interfaces.datastore", "DefaultLabelTag.FINAL", "the tag of a person's label"),
    Symbol("monailabel.interfaces.exception", "MONAILabelException", "answered with its message"),
    Symbol("monailabel.interfaces.exception", "ImageNotFoundException", "answered with 404"),
    Symbol("monailabel.interfaces.exception", "LabelNotFoundException", "answered with 404"),
    Symbol("monailabel.interfaces.tasks.infer_v2", "InferTask.info", "base of our models"),
    Symbol(
        "monailabel.interfaces.tasks.infer_v2", "InferType.DEEPGROW", "what both clients list under clicks"
    ),
    Symbol(
        "monailabel.interfaces.tasks.infer_v2",
        "InferType.SEGMENTATION",
        "what both clients list as automatic",
    ),
    Symbol("monailabel.interfaces.datastore", "DefaultLabelTag.ORIGINAL", "the tag of a model's own label"),
    Symbol("monailabel.interfaces.tasks.strategy", "Strategy", "base of our strategies"),
    Symbol("monailabel.interfaces.tasks.scoring", "ScoringMethod", "base of our scoring methods"),
    Symbol("monailabel.interfaces.tasks.train", "TrainTask.info", "base of our trainer"),
    Symbol("monailabel.interfaces.utils.app", "app_instance", "builds the app from main.py, once a process"),
    *(Symbol("monailabel.config", f"settings.MONAI_LABEL_{name}", "read") for name in _SETTINGS),
)

RELIED_ON_WHEN_SERVING: tuple[Symbol, ...] = (
    Symbol("monailabel.app", "app.router.routes", "stock routes are taken out, ours put in"),
    Symbol("monailabel.app", "app.user_middleware", "replaced: no CORS for everybody"),
    Symbol("monailabel.app", "app.middleware_stack", "set to None, so that it is built again with ours"),
    Symbol("monailabel.app", "app.add_exception_handler", "every error becomes a sentence"),
)

KEPT_ROUTES = frozenset({"/openapi.json", "/docs", "/static", "/", "/favicon.ico"})
"""Stock routes that stay; every other one is taken out, also one that a later MONAI Label adds."""


def check(symbols: tuple[Symbol, ...] = RELIED_ON) -> None:
    """Raise `ConfigurationError` naming every symbol that is no longer where medsa needs it."""
    moved = [
        f"{symbol.module}.{symbol.attribute} ({symbol.why})" for symbol in symbols if not _exists(symbol)
    ]
    if moved:
        raise ConfigurationError(
            "this version of MONAI Label is not one medsa knows; it no longer has " + "; ".join(moved)
        )


def _exists(symbol: Symbol) -> bool:
    try:
        found = importlib.import_module(symbol.module)
        for name in symbol.attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError):
        return False
    return True


def running_server() -> FastAPI | None:
    """The FastAPI application that is starting in this process; None in a background task."""
    module = sys.modules.get("monailabel.app")
    return getattr(module, "app", None)


def give_up(error: MedsaError) -> NoReturn:
    """End the process with status 2 and one sentence.

    In the server this runs inside ASGI's start-up, where any exception, SystemExit included, is caught and
    printed as a traceback; hence the direct way out. No request has been served yet.
    """
    print(f"medsa cannot start: {error}", file=sys.stderr, flush=True)  # noqa: T201 - a command's last words
    if running_server() is None:
        raise SystemExit(2)
    logging.shutdown()
    os._exit(2)
