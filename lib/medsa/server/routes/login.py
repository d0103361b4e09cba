"""/auth/: how clients log in; there only while authentication is on (404 tells clients that it is off)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form
from monailabel.config import settings

from medsa.server import auth

router = APIRouter(prefix="/auth", tags=["Auth"])


@router.get("/", summary="Whether and where to log in")
def get_auth() -> dict[str, Any]:
    return {
        "enabled": auth.enabled(),
        "client_id": settings.MONAI_LABEL_AUTH_CLIENT_ID,
        "realm": settings.MONAI_LABEL_AUTH_REALM_URI,
    }


@router.post("/token", summary="A token for a name and password")
def post_token(username: Annotated[str, Form()], password: Annotated[str, Form()]) -> dict[str, Any]:
    answer = auth.password_login(username, password)
    return {"access_token": answer.get("access_token"), "token_type": answer.get("token_type")}


@router.get("/token/valid", summary="Whose token this is")
def get_valid(user: Annotated[auth.User, Depends(auth.requires_login)]) -> dict[str, Any]:
    return {"username": user.name, "email": user.email, "name": user.full_name, "roles": user.roles}
