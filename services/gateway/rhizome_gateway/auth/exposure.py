"""Who can reach the gateway at all: addresses, hosts, and origins of web pages."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from rhizome_gateway.auth.key_ring import KeyRing
from rhizome_gateway.auth.middleware import AuthMiddleware, Render, render_openai
from rhizome_gateway.errors import ApiError

_log = logging.getLogger(__name__)

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)


class ExposureError(Exception):
    """A configuration that would let strangers in; the text says what to change."""


def check_exposure(host: str, *, has_keys: bool, allow_open: bool) -> None:
    """Refuse to listen beyond this machine without keys, and say in the log who may come in.

    Raises:
        ExposureError: `host` is not loopback, there are no keys, and nobody said that this is meant so.
    """
    if has_keys:
        return
    if is_loopback(host):
        _log.warning("no keys file: everybody on this machine may use everything")
    elif allow_open:
        _log.warning("no keys file, and --allow-open: everybody who reaches %s may use everything", host)
    else:
        raise ExposureError(
            f"without keys, others than this machine must not reach the gateway at {host}. Give --keys-file "
            "('rhizome keys new' makes one), listen on --host 127.0.0.1, or, where a firewall or a proxy in "
            "front decides who may come in, say --allow-open"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; names other than localhost do not count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def protect(
    app: ASGIApp,
    *,
    host: str,
    keys: KeyRing | None,
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    render: Render = render_openai,
) -> ASGIApp:
    """Put everything that decides who comes in around an application.

    From the outside in: the `Host` header, CORS, keys. Browsers send preflights without keys and read a
    refusal only with CORS headers, so CORS is outside; without origins it is not there at all.

    Args:
        app: what is protected.
        host: the address that the gateway listens on.
        keys: absent where everybody may come in.
        allowed_hosts: further names for the `Host` header.
        cors_origins: origins (`https://host:port`) whose pages may call the API from a browser.
        render: makes the response of a refusal.
    """
    app = AuthMiddleware(app, keys, render)
    if cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
            max_age=600,
        )
    if keys is None and (is_loopback(host) or allowed_hosts):
        app = HostMiddleware(app, (*_LOOPBACK_NAMES, host, *allowed_hosts), render)
    return app


class HostMiddleware:
    """ASGI middleware that answers only to its own names.

    A web page may point a name of its own at 127.0.0.1 and then talk to the gateway as if it were its own
    server (DNS rebinding). It cannot change the `Host` header, which then shows that name.

    Args:
        app: what is protected.
        names: hosts without ports; `*` is any.
        render: makes the response of a refusal.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str], render: Render = render_openai) -> None:
        self._app = app
        self._names = frozenset(name.strip("[]").rstrip(".").lower() for name in names)
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and "*" not in self._names and not self._is_own(scope):
            error = ApiError(
                403,
                "The gateway does not answer to the name in the Host header. Use localhost or 127.0.0.1, or "
                "start it with --allowed-hosts.",
                kind="permission_error",
                code="host_not_allowed",
            )
            await self._render(scope, error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        return len(hosts) == 1 and _host_name(hosts[0].decode("latin-1")) in self._names


def _host_name(header: str) -> str:
    """`Host` without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].rstrip(".").lower()
