"""ASGI middleware that counts requests by route, method and status, and times them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rhizome_gateway.metrics.instruments import GatewayMetrics

_CLIENT_GONE = 499
_STOPPED = 503


class HttpMetrics:
    """Counts what passes; belongs outside of everything that answers.

    A response that never became complete is a 499, unless the gateway broke it off: 500 where a bug did, 503
    where it stopped.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = time.monotonic()
        status, unfinished = 0, _CLIENT_GONE
        complete = False

        def watched(message: Message) -> Awaitable[None]:  # no coroutine of its own: it runs for every event
            nonlocal status, complete
            if message["type"] == "http.response.body":
                complete = not message.get("more_body", False)
            elif message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        self._metrics.http_begun()
        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            unfinished = _STOPPED
            raise
        except (ClientDisconnect, OSError):  # gone before its body was read, or while something was sent
            raise
        except Exception:
            unfinished = 500
            raise
        finally:
            self._metrics.http_ended(
                scope["method"],
                _route(scope),
                status if complete else unfinished,
                time.monotonic() - arrived,
            )


def _route(scope: Scope) -> str:
    """The template: never the path, of which clients can make up any number."""
    route = getattr(scope.get("route"), "path", None)
    return route if isinstance(route, str) and route else "unknown"
