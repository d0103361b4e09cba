"""Who asks, and may they: Keycloak's Bearer tokens while authentication is on, else where they ask from."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpx
import jwt
from fastapi import Request
from jwt.algorithms import RSAAlgorithm
from monailabel.config import settings

from medsa.errors import MedsaError

logger = logging.getLogger(__name__)

USER, ANNOTATOR, REVIEWER, ADMIN = ROLES = ("user", "annotator", "reviewer", "admin")
"""Each role includes those before it."""

_KEY_LIVES = 600.0
_KEY_RETRY = 30.0
_FIRST_KEY_RETRY = 2.0
_AWAY = "the login server does not answer; try again in a minute"


class UnauthenticatedError(MedsaError):
    """No token, or one that is not valid (any more)."""

    status = 401


class ForbiddenError(MedsaError):
    """The role, or the place one asks from, does not allow it."""

    status = 403


class IdentityProviderError(MedsaError):
    """Keycloak does not answer, or not as Keycloak would."""

    status = 503


@dataclass(frozen=True)
class User:
    """`rank`: index of the highest role in `ROLES`, -1 for none."""

    name: str
    rank: int
    email: str = ""
    full_name: str = ""

    @property
    def roles(self) -> list[str]:
        """MONAI Label's names of the roles this user has."""
        return [_setting(f"ROLE_{role.upper()}") for role in ROLES[: self.rank + 1]]


def enabled() -> bool:
    """True when MONAI_LABEL_AUTH_ENABLE is set."""
    return bool(settings.MONAI_LABEL_AUTH_ENABLE)


def is_loopback(host: str | None) -> bool:
    """True for this machine; also for a connection without an address (a Unix socket)."""
    if host in (None, "localhost"):
        return True
    try:
        address = ip_address(host or "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def without_authentication(host: str | None) -> User:
    """With authentication off everybody annotates; only who sits at the server administers it."""
    return (
        User("local", ROLES.index(ADMIN)) if is_loopback(host) else User("anonymous", ROLES.index(REVIEWER))
    )


def from_header(authorization: str | None) -> User:
    """The user of an `Authorization` header; raises `UnauthenticatedError`, `IdentityProviderError`."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError(
            "this server asks for a login: get a token from /auth/token and send it as Bearer"
        )
    return from_token(token.strip())


def from_token(token: str) -> User:
    """The user of a token: signed with RS256, not expired, for MEDSA_AUTH_AUDIENCE where that is set."""
    for refresh in (False, True):
        try:
            claims = _decode(token, _realm_key.get(refresh))
            break
        except jwt.InvalidSignatureError:
            if refresh:
                raise UnauthenticatedError(
                    "the token was not signed by the login server of this site"
                ) from None
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the login has expired: log in again") from None
        except jwt.InvalidTokenError:
            raise UnauthenticatedError("the token is not valid: log in again") from None
    names = _roles(claims)
    ranks = [rank for rank, role in enumerate(ROLES) if _setting(f"ROLE_{role.upper()}") in names]
    name = claims.get(_setting("TOKEN_USERNAME"))
    if not isinstance(name, str) or not name:
        raise UnauthenticatedError("the token names no user")
    return User(
        name,
        max(ranks, default=-1),
        email=str(claims.get(_setting("TOKEN_EMAIL")) or ""),
        full_name=str(claims.get(_setting("TOKEN_NAME")) or ""),
    )


def requires(role: str) -> Callable[[Request], Awaitable[User]]:
    """A FastAPI dependency: the user of the request, who must have `role`; raises `ForbiddenError`."""
    least = ROLES.index(role)

    async def user_with_role(request: Request) -> User:
        user: User = request.state.user
        if user.rank < least:
            raise ForbiddenError(
                f"this needs the role {_setting(f'ROLE_{role.upper()}')}"
                if enabled()
                else "this is done on the server's own machine, or by an administrator with authentication on"
            )
        return user

    return user_with_role


async def requires_login(request: Request) -> User:
    """A FastAPI dependency: the user of the request, whatever the roles."""
    return request.state.user


def password_login(username: str, password: str) -> dict[str, Any]:
    """Keycloak's answer to a password grant, token and token type among it."""
    configuration = _ask_json(f"{_setting('REALM_URI')}/.well-known/openid-configuration")
    form = {
        "client_id": _setting("CLIENT_ID"),
        "username": username,
        "password": password,
        "grant_type": "password",
    }
    try:
        answer = httpx.post(str(configuration["token_endpoint"]), data=form, timeout=_setting("TIMEOUT"))
        if answer.status_code in (400, 401, 403):
            raise UnauthenticatedError("the login server refused this name and password")
        answer.raise_for_status()
        return dict(answer.json())
    except (httpx.HTTPError, KeyError, ValueError, TypeError):
        raise IdentityProviderError(_AWAY) from None


class _RealmKey:
    """The realm's public key, asked once in ten minutes, and again at once when a signature does not fit.

    While the login server is away, or answers with what is no key, the last one serves on, and it is asked
    again after a pause.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Any = None
        self._asked, self._pause = float("-inf"), _KEY_LIVES

    def get(self, refresh: bool = False) -> Any:
        """The key; who has one that may fit does not wait while somebody else asks for it."""
        if self._lock.acquire(blocking=refresh or self._key is None):
            try:
                pause = min(self._pause, _KEY_RETRY) if refresh else self._pause
                if time.monotonic() - self._asked > pause:
                    self._ask()
            finally:
                self._lock.release()
        if self._key is None:
            raise IdentityProviderError(_AWAY)
        return self._key

    def _ask(self) -> None:
        try:
            self._key, self._pause = _public_key(_ask_json(str(_setting("REALM_URI")))), _KEY_LIVES
        except IdentityProviderError as error:
            if self._key is None:
                self._pause = _FIRST_KEY_RETRY
                raise
            self._pause = _KEY_RETRY
            logger.warning(f"the key that was known before serves on: {error}")
        finally:
            self._asked = time.monotonic()


_realm_key = _RealmKey()


def _public_key(realm: Mapping[str, Any]) -> Any:
    pem = f"-----BEGIN PUBLIC KEY-----\n{realm.get('public_key')}\n-----END PUBLIC KEY-----"
    try:
        return RSAAlgorithm(RSAAlgorithm.SHA256).prepare_key(pem)
    except (jwt.InvalidKeyError, ValueError):
        raise IdentityProviderError(
            "the login server tells no key: does MONAI_LABEL_AUTH_REALM_URI name a Keycloak realm?"
        ) from None


def _decode(token: str, key: Any) -> dict[str, Any]:
    audience = os.environ.get("MEDSA_AUTH_AUDIENCE")
    options = {"require": ["exp"], "verify_aud": audience is not None}
    return dict(jwt.decode(token, key, algorithms=["RS256"], audience=audience, options=options))


def _roles(claims: Mapping[str, Any]) -> list[str]:
    found: Any = claims
    for name in str(_setting("TOKEN_ROLES")).split("#"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return [str(role) for role in found] if isinstance(found, list) else []


def _ask_json(url: str) -> dict[str, Any]:
    try:
        answer = httpx.get(url, timeout=_setting("TIMEOUT"))
        answer.raise_for_status()
        return dict(answer.json())
    except (httpx.HTTPError, ValueError, TypeError):
        raise IdentityProviderError(_AWAY) from None


def _setting(name: str) -> Any:
    return getattr(settings, f"MONAI_LABEL_AUTH_{name}")
