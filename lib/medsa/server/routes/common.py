"""What the endpoints share: the app, the user, and the check that an id is an id."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Request

from medsa.errors import BadInputError
from medsa.server import auth
from medsa.server.app import MedsaApp
from medsa.server.click import read_params
from medsa.server.ids import is_id


def _app(request: Request) -> Any:
    return request.app.state.medsa


App = Annotated[MedsaApp, Depends(_app)]
AnyUser = Annotated[auth.User, Depends(auth.requires(auth.USER))]
Annotator = Annotated[auth.User, Depends(auth.requires(auth.ANNOTATOR))]
Admin = Annotated[auth.User, Depends(auth.requires(auth.ADMIN))]


def owner(user: auth.User) -> str:
    """The name uploads belong to; without authentication they belong to whoever knows their id."""
    return user.name if auth.enabled() else ""


def an_id(value: str, what: str = "image") -> str:
    """`value` when it can be an id of the datastore; raises `BadInputError` for anything like a path."""
    if not value:
        raise BadInputError(f"which {what} is meant? its id is missing")
    if not is_id(value):
        raise BadInputError(f"{what} must be an id of the datastore, not a path")
    return value


def a_tag(value: str) -> str:
    """`value` when it can be a label's tag ("" for the default); raises `BadInputError`."""
    if value and not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", value):
        raise BadInputError("a tag is a word of letters, digits, - and _, such as final")
    return value or "final"


def user_info(params: str, user: auth.User) -> dict[str, Any]:
    """A form's `params` with the name of the user added where one is known."""
    return {**read_params(params), **({"user": user.name} if auth.enabled() else {})}
