"""The application: routes, error handlers, and what wraps every request."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from rhizome_gateway import __version__
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.errors import ApiError, internal_error
from rhizome_gateway.http.boundary import RequestBoundary, request_id_of
from rhizome_gateway.openai.schema import ChatCompletionRequest
from rhizome_gateway.routes import chat, health, models
from rhizome_gateway.settings import GatewaySettings
from rhizome_telemetry.asgi import TracingMiddleware
from rhizome_transport.client import EngineClient
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

ConnectEngine = Callable[[GatewaySettings], EngineClient]


class Gateway:
    """The gateway as an ASGI application.

    Args:
        settings: the configuration.
        connect: makes the client of the engine, inside the running loop.
    """

    def __init__(self, settings: GatewaySettings, connect: ConnectEngine | None = None) -> None:
        self.api = _api(settings, connect or connect_engine)
        self._app: ASGIApp = TracingMiddleware(RequestBoundary(self.api))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        await self._app(scope, receive, send)

    def drain(self) -> None:
        """Say over /ready that no more requests should come."""
        self.api.state.draining = True


def connect_engine(settings: GatewaySettings) -> EngineClient:
    """Make the client for the configured engine: ZeroMQ for `ipc://`, gRPC for anything else."""
    if settings.engine.startswith("ipc://"):
        from rhizome_transport.zmq_client import ZmqEngineClient

        return ZmqEngineClient(settings.engine, peer_name="rhizome-gateway")
    from rhizome_transport.grpc_client import GrpcEngineClient

    return GrpcEngineClient(settings.engine, peer_name="rhizome-gateway")


def _api(settings: GatewaySettings, connect: ConnectEngine) -> FastAPI:
    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        session = EngineSession(connect(settings), refresh_s=settings.model_refresh_s)
        api.state.session = session
        session.start()
        try:
            yield
        finally:
            await session.close()

    api = FastAPIOffline(  # /docs without scripts from other hosts
        title="Rhizome",
        version=__version__,
        summary="Large language models behind the OpenAI API.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    api.state.settings = settings
    api.state.draining = False
    for module in (chat, models, health):
        api.include_router(module.router)
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(EngineError, _engine_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(Exception, _bug)
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _engine_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    return ApiError.from_engine(error).response()


async def _http_error(_: Request, error: Exception) -> Response:
    """What the router refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    texts = {
        404: ("There is nothing at this address; /docs lists what there is.", "unknown_url"),
        405: (
            "This address does not take this method; Allow lists those it takes.",
            "method_not_allowed",
        ),
    }
    message, code = texts.get(error.status_code, (str(error.detail), None))
    return ApiError(error.status_code, message, code=code, headers=error.headers).response()


async def _validation_error(_: Request, error: Exception) -> Response:
    return ApiError(400, "The parameters are not valid; see /docs.", code="invalid_value").response()


async def _bug(request: Request, error: Exception) -> Response:
    """RequestBoundary logs the exception."""
    return internal_error(request_id_of(request.scope)).response()


def _openapi(api: FastAPI) -> dict[str, Any]:
    """FastAPI's document plus the schema of the body that the hot route reads by itself."""
    if not api.openapi_schema:
        document = get_openapi(title=api.title, version=api.version, summary=api.summary, routes=api.routes)
        schema = ChatCompletionRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(schema.pop("$defs", {}))
        schemas["ChatCompletionRequest"] = schema
        api.openapi_schema = document
    return api.openapi_schema
