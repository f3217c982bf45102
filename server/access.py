"""The dependencies that guard every route: which key opens what."""

from typing import Annotated, Protocol, cast

from fastapi import Depends
from starlette.requests import HTTPConnection

from server.auth import Authenticator, Principal, missing_key
from server.errors import PermissionDenied
from server.inner import inner_of
from server.store.records import KeyKind

OPEN_PATHS = frozenset({"/healthz", "/health", "/readyz"})
ANY_KEY_PATHS = frozenset({"/openapi.json"})  # API keys and admin keys
SUBPROTOCOL_PREFIX = "openai-insecure-api-key."
"""How a browser's WebSocket, which can't set headers, presents its key. Never echoed."""


class HasAuthenticator(Protocol):
    @property
    def authenticator(self) -> Authenticator: ...


def authenticator_of(connection: HTTPConnection) -> Authenticator:
    """The only place that knows where the application keeps it."""
    return cast(HasAuthenticator, connection.app.state.penstock).authenticator


def presented_key(connection: HTTPConnection) -> str | None:
    """The key of `Authorization: Bearer`, of `x-api-key` (Anthropic's clients), or of a WebSocket's subprotocol; None
    if there is none, or several."""
    headers, plain = (connection.headers.getlist(name) for name in ("authorization", "x-api-key"))
    if len(headers) + len(plain) > 1:
        return None
    if plain:
        return _text_of(plain[0])
    if headers:
        scheme, _, credentials = headers[0].partition(" ")
        return _text_of(credentials) if scheme.lower() == "bearer" else None
    offered = [name for name in connection.scope.get("subprotocols", ()) if name.startswith(SUBPROTOCOL_PREFIX)]
    return offered[0].removeprefix(SUBPROTOCOL_PREFIX) if len(offered) == 1 else None


def _text_of(header: str) -> str:
    """A header's bytes come as Latin-1; clients that have other letters in a key send UTF-8."""
    header = header.strip(" \t")
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return header


def key_for(path: str) -> KeyKind | None:
    """What opens an exact path; None for those that are open."""
    if path in OPEN_PATHS:
        return None
    return KeyKind.ADMIN if path == "/metrics" or path.startswith("/admin/") else KeyKind.API


async def authenticate_route(connection: HTTPConnection) -> Principal | None:
    """The application's default: deny. Decides by the exact path, before the route does anything.

    None for the open paths; /metrics and /admin need an admin key, everything else an API key, but for
    ANY_KEY_PATHS, which either opens.
    """
    path = connection.scope["path"]
    needed = key_for(path)
    if needed is None:
        return None
    if (inner := inner_of(connection)) is not None:  # its key was checked by who asks
        principal = inner.principal
    else:
        principal = await authenticator_of(connection).authenticate(presented_key(connection))
    connection.scope.setdefault("state", {})[_STATE_KEY] = principal
    if principal.kind is not needed and path not in ANY_KEY_PATHS:
        raise PermissionDenied(_WRONG_KIND[needed])
    return principal


def authenticated(connection: HTTPConnection) -> Principal | None:
    """Who asks, for what must not fail without: the log line of a refusal."""
    principal: Principal | None = connection.scope.get("state", {}).get(_STATE_KEY)
    return principal


_STATE_KEY = "penstock_principal"
_WRONG_KIND = {
    KeyKind.ADMIN: "This needs an admin key: an API key can't be used here.",
    KeyKind.API: "This needs an API key: an admin key can't be used here.",
}


async def current_principal(
    principal: Annotated[Principal | None, Depends(authenticate_route)],
) -> Principal:
    """Who is asking. FastAPI runs `authenticate_route` once a request, so this costs no second look-up."""
    if principal is None:
        raise missing_key()
    return principal


async def require_admin(principal: Annotated[Principal, Depends(current_principal)]) -> Principal:
    """For administrators' routes: holds even where they are mounted under another path."""
    if principal.kind is not KeyKind.ADMIN:
        raise PermissionDenied(_WRONG_KIND[KeyKind.ADMIN])
    return principal
