"""Routes that are served without a framework: those that generate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.errors import ApiError, openai_error_body
from rhizome_gateway.http.api_document import generating_responses, request_body
from rhizome_gateway.http.exchange import ErrorBody, Exchange
from rhizome_gateway.runtime import Runtime

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HotRoute:
    """One `POST` route.

    Attributes:
        path: exact.
        handle: answers a request; ApiError and EngineError become error responses.
        summary: for the API's document.
        tag: its group there.
        request: the body's schema.
        error_body: the API's envelope.
    """

    path: str
    handle: Handler
    summary: str
    tag: str
    request: type[BaseModel]
    error_body: ErrorBody = openai_error_body

    def operation(self, schemas: dict[str, Any]) -> dict[str, Any]:
        """This route in an OpenAPI document, to whose schemas those of the body are added."""
        schema = self.request.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        name = self.request.__name__
        schemas[name] = schema
        return {
            "tags": [self.tag],
            "summary": self.summary,
            "operationId": self.path.strip("/").replace("/", "_"),
            "requestBody": request_body(self.path, name),
            "responses": generating_responses(
                self.path,
                streams="stream" in self.request.model_fields,
                anthropic=self.error_body is not openai_error_body,
            ),
        }


class HotRoutes:
    """ASGI application: its routes, and another application for everything else.

    A request is admitted before its body is read, so that refusing costs nothing.
    """

    def __init__(self, routes: Sequence[HotRoute], runtime: Runtime, other: ASGIApp) -> None:
        self._routes: Mapping[str, HotRoute] = {route.path: route for route in routes}
        self._runtime = runtime
        self._other = other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        route = self._routes.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await self._other(scope, receive, send)
            return
        scope["route"] = route
        exchange = Exchange(scope, receive, send, route.error_body)
        try:
            if scope["method"] != "POST":
                raise ApiError(
                    405,
                    "This address does not take this method; Allow lists those it takes.",
                    code="method_not_allowed",
                    headers={"Allow": "POST"},
                )
            with self._runtime.guard.enter(caller_of(scope)) as exchange.permit:
                await _unless_lost(exchange, self._runtime.session, route.handle)
        except ClientDisconnect:
            return
        except Exception as error:
            failure = exchange.failure(error)
            if failure.status in (429, 503):
                self._runtime.metrics.refused(failure.code or "", caller_of(scope).tenant_name)
            if exchange.started:
                raise
            error.__traceback__ = None  # told; its frames hold it, and all of the request
            await exchange.fail(failure)


async def _unless_lost(exchange: Exchange, session: EngineSession, handle: Handler) -> None:
    """Handle a request, and stop with whatever it waits for when its client leaves.

    Raises:
        ClientDisconnect: it left.
    """
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        task.cancel()

    exchange.connection.on_lost = stop
    try:
        await session.catch_up()
        await handle(exchange)
    except asyncio.CancelledError:
        if not exchange.connection.lost or task.uncancel():
            raise
        await exchange.see_departure()
        raise ClientDisconnect from None
    finally:
        exchange.connection.on_lost = None
