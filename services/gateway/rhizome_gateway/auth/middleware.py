"""Deny by default: no path but the public ones is reached without a key."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from rhizome_gateway.auth.caller import ANONYMOUS, SCOPE_KEY
from rhizome_gateway.auth.key_ring import KeyRing
from rhizome_gateway.errors import ApiError

PUBLIC_PATHS = frozenset({"/health", "/ready", "/"})
PUBLIC_FOLDERS = ("/assets/",)

Render = Callable[[Scope, ApiError], ASGIApp]
"""Makes the response of a refusal; each API has its own envelope."""


def render_openai(_: Scope, error: ApiError) -> ASGIApp:
    """The refusal in OpenAI's envelope."""
    return error.response()


class AuthMiddleware:
    """ASGI middleware that puts the caller into the scope (`caller_of`) or answers 401.

    A path is compared as the router sees it, decoded and without the host. Public are exact paths, and files
    below a folder; anything else, unknown paths and methods included, needs a key.

    Args:
        app: what is protected.
        keys: absent where everybody may come in, as one anonymous caller.
        render: makes the response of a refusal.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing | None, render: Render = render_openai) -> None:
        self._app = app
        self._keys = keys
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        if self._keys is None:
            scope[SCOPE_KEY] = ANONYMOUS
        elif not is_public(scope["path"]):
            presented = presented_key(scope)
            caller = None if presented is None else self._keys.find(presented)
            if caller is None:
                await self._render(scope, _refusal(presented is None))(scope, receive, send)
                return
            scope[SCOPE_KEY] = caller
        await self._app(scope, receive, send)


def is_public(path: str) -> bool:
    """Whether a decoded path needs no key."""
    if path in PUBLIC_PATHS:
        return True
    return path.startswith(PUBLIC_FOLDERS) and ".." not in path and "\\" not in path


def presented_key(scope: Scope) -> bytes | None:
    """The key in `Authorization: Bearer`, else in `x-api-key`; None where there is none, or more than one."""
    bearer: list[bytes] = []
    plain: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                bearer.append(key.strip())
        elif name == b"x-api-key":
            plain.append(value.strip())
    keys = bearer or plain
    return keys[0] if len(keys) == 1 and keys[0] else None


def _refusal(missing: bool) -> ApiError:
    # Clients such as LiteLLM know a wrong key by OpenAI's own words.
    problem = "There is no usable API key in this request." if missing else "Incorrect API key provided."
    return ApiError(
        401,
        f"{problem} Send a valid one as 'Authorization: Bearer KEY' or as 'x-api-key: KEY'.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
