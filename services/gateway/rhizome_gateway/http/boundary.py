"""The outermost layer: a request id in, through and out, and no exception past it."""

from __future__ import annotations

import asyncio
import logging
import re
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rhizome_gateway.errors import internal_error, stopping_error
from rhizome_telemetry.logs import log_request_id
from rhizome_telemetry.random_ids import random_hex

_log = logging.getLogger(__name__)

_SCOPE_KEY = "rhizome.request_id"
_ANTHROPIC_PATHS = "/v1/messages"
"""Anthropic's clients look for the id under a name of their own."""
_USABLE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id_of(scope: Scope) -> str:
    """The id of the request that a scope belongs to."""
    return str(scope.get(_SCOPE_KEY, ""))


class RequestBoundary:
    """ASGI middleware: `x-request-id` on every response, the client's own where it sent a usable one.

    What nobody caught is logged here with its traceback, and the client gets a plain 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[_SCOPE_KEY] = _request_id(scope)
        token = log_request_id.set(request_id)
        headers = [(b"x-request-id", request_id.encode())]
        if scope["path"].startswith(_ANTHROPIC_PATHS):
            headers.append((b"request-id", request_id.encode()))
        started = False
        status, arrived = 0, time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # the server stops, and this one did not end in time
            if not started:
                await stopping_error().response()(scope, receive, send_with_id)
            raise
        except Exception:
            _log.exception("the request failed")
            if not started:
                await internal_error(request_id).response()(scope, receive, send_with_id)
        finally:
            if _log.isEnabledFor(logging.DEBUG):
                took_s = time.monotonic() - arrived
                _log.debug("%s %s: %d in %.3f s", scope["method"], scope["path"], status, took_s)
            log_request_id.reset(token)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            if _USABLE.fullmatch(text):
                return str(text)
    return f"req_{random_hex()}"
