"""The application: routes, error handlers, and what wraps every request."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rhizome_gateway import __version__
from rhizome_gateway.anthropic import errors as anthropic_errors
from rhizome_gateway.anthropic.models import speaks_anthropic
from rhizome_gateway.anthropic.request import CountTokensRequest, MessagesRequest
from rhizome_gateway.anthropic.route import CountTokens, Messages
from rhizome_gateway.auth.exposure import protect
from rhizome_gateway.auth.guard import Guard
from rhizome_gateway.auth.key_ring import KeyRing
from rhizome_gateway.auth.ledger import MemoryLedger
from rhizome_gateway.auth.shared_ledger import SharedLedger
from rhizome_gateway.engine_cores import connect_cores, engine_cores
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.errors import ApiError, internal_error, openai_error_body
from rhizome_gateway.http.api_document import complete
from rhizome_gateway.http.boundary import RequestBoundary, request_id_of
from rhizome_gateway.http.connection import SCOPE_KEY as CONNECTION_KEY
from rhizome_gateway.http.exchange import ErrorBody
from rhizome_gateway.http.hot_routes import HotRoute, HotRoutes
from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_gateway.metrics.live import LiveFigures
from rhizome_gateway.metrics.middleware import HttpMetrics
from rhizome_gateway.model_aliases import ModelAliases
from rhizome_gateway.openai.chat.request import ChatCompletionRequest
from rhizome_gateway.openai.chat.route import ChatCompletions
from rhizome_gateway.openai.completions.request import CompletionRequest
from rhizome_gateway.openai.completions.route import Completions
from rhizome_gateway.openai.embeddings.request import EmbeddingRequest
from rhizome_gateway.openai.embeddings.route import Embeddings
from rhizome_gateway.openai.responses.request import InputTokensRequest, ResponsesRequest
from rhizome_gateway.openai.responses.route import InputTokens, Responses
from rhizome_gateway.page import files as page_files
from rhizome_gateway.page import pulse
from rhizome_gateway.page.fleet import Fleet
from rhizome_gateway.page.stack_client import StackClient
from rhizome_gateway.routes import health, metrics, models
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.settings import GatewaySettings
from rhizome_gateway.tokenization import info as tokenizer_info
from rhizome_gateway.tokenization.request import DetokenizeRequest, TokenizeRequest
from rhizome_gateway.tokenization.routes import Detokenize, Tokenize
from rhizome_telemetry.asgi import TracingMiddleware
from rhizome_transport.client import EngineClient
from rhizome_transport.endpoint import is_core_endpoint
from rhizome_transport.errors import EngineError
from rhizome_transport.tls import ClientTls
from rhizome_transport.tokens import Tokens

_log = logging.getLogger(__name__)

ConnectEngine = Callable[[GatewaySettings], EngineClient]


class Gateway:
    """The gateway as an ASGI application.

    Args:
        settings: the configuration.
        connect: makes the client of the engine, inside the running loop.

    Attributes:
        metrics: what this process counts.
    """

    def __init__(self, settings: GatewaySettings, connect: ConnectEngine | None = None) -> None:
        self._settings = settings
        self._connect = connect or connect_engine
        self._runtime: Runtime | None = None
        self._keys = None if settings.keys_file is None else KeyRing(settings.keys_file)
        self.metrics = GatewayMetrics(self.is_ready, max_tenants=settings.metrics_tenants)
        self._error_bodies: dict[str, ErrorBody] = {}
        self.api = _api(settings, self._run)
        self._app = self._wrapped(self.api)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        try:
            await self._app(scope, receive, send)
        finally:
            # It holds the scope, which holds it. Without circles, what a request had is gone with it; with
            # one, all of it waits for the garbage collector.
            scope.pop(CONNECTION_KEY, None)

    def drain(self) -> None:
        """Say over /ready that no more requests should come."""
        self.api.state.draining = True

    def status(self) -> str:
        """One line for people."""
        served = None if self._runtime is None else self._runtime.session.known_model
        if served is None or not self.is_ready():
            return f"no engine answers at {self._settings.engine}"
        return f"serving {served.info.model}"

    @asynccontextmanager
    async def _run(self, api: FastAPI) -> AsyncIterator[None]:
        """Make what needs the loop, and let it go at the end."""
        settings = self._settings
        session = EngineSession(
            self._connect(settings),
            refresh_s=settings.model_refresh_s,
            aliases=ModelAliases(settings.model_alias),
            tool_parser=settings.tool_parser,
            reasoning_parser=settings.reasoning_parser,
            seen=Path(settings.engine_seen) if settings.engine_seen else None,
        )
        ledger = SharedLedger(Path(settings.shared_ledger)) if settings.shared_ledger else MemoryLedger()
        guard = Guard(ledger, max_open_requests=settings.max_open_requests)
        runtime = self._runtime = Runtime(settings, session, guard, self.metrics)
        api.state.runtime = runtime
        api.state.session = session
        live = api.state.live = LiveFigures(self.metrics, session)
        stack = api.state.stack = StackClient(
            settings.engine, session.client, engine_tls(settings), engine_tokens(settings)
        )
        fleet = api.state.fleet = Fleet(stack, session, live)
        routes = hot_routes(runtime)
        self._error_bodies = {route.path: route.error_body for route in routes}
        self._app = self._wrapped(HotRoutes(routes, runtime, self.api))
        session.start()
        live.start()
        fleet.start()
        gc.collect()
        gc.freeze()  # what was made so far stays; collections need not look at it again
        try:
            yield
        finally:
            await live.close()
            await fleet.close()
            await stack.close()
            await session.close()
            if isinstance(ledger, SharedLedger):
                ledger.close()

    def _wrapped(self, app: ASGIApp) -> ASGIApp:
        settings = self._settings
        protected = protect(
            app,
            host=settings.host,
            keys=self._keys,
            allowed_hosts=settings.allowed_hosts,
            cors_origins=settings.cors_origins,
            render=self._refusal,
        )
        return TracingMiddleware(RequestBoundary(HttpMetrics(protected, self.metrics)))

    def _refusal(self, scope: Scope, error: ApiError) -> ASGIApp:
        """Who may not come in reads why in the envelope of the API that was asked."""
        self.metrics.auth_failed(error.code or "")
        route = self._error_bodies.get(scope["path"]) or _error_body_of(scope)
        body = route(error, request_id_of(scope))
        return Response(body, error.status, error.headers, media_type="application/json")

    def is_ready(self) -> bool:
        """Whether an engine answers."""
        return self._runtime is not None and self._runtime.session.ready


def hot_routes(runtime: Runtime) -> Sequence[HotRoute]:
    """The routes that generate."""
    return [
        HotRoute(
            "/v1/chat/completions",
            ChatCompletions(runtime),
            "Continue a conversation",
            "chat",
            ChatCompletionRequest,
        ),
        HotRoute(
            "/v1/completions",
            Completions(runtime),
            "Go on with a text",
            "completions",
            CompletionRequest,
        ),
        HotRoute(
            "/v1/embeddings",
            Embeddings(runtime),
            "Turn texts into vectors",
            "embeddings",
            EmbeddingRequest,
        ),
        HotRoute(
            "/v1/responses",
            Responses(runtime),
            "Continue a conversation, in the form of items",
            "responses",
            ResponsesRequest,
        ),
        HotRoute(
            "/v1/responses/input_tokens",
            InputTokens(runtime),
            "Count the tokens of a conversation in the form of items",
            "responses",
            InputTokensRequest,
        ),
        HotRoute("/tokenize", Tokenize(runtime), "Text to tokens", "tokens", TokenizeRequest),
        HotRoute("/detokenize", Detokenize(runtime), "Tokens to text", "tokens", DetokenizeRequest),
        HotRoute(
            "/v1/messages",
            Messages(runtime),
            "Continue a conversation, in Anthropic's form",
            "anthropic",
            MessagesRequest,
            anthropic_errors.error_body,
        ),
        HotRoute(
            "/v1/messages/count_tokens",
            CountTokens(runtime),
            "Count the tokens of a conversation",
            "anthropic",
            CountTokensRequest,
            anthropic_errors.error_body,
        ),
    ]


def engine_tls(settings: GatewaySettings) -> ClientTls | None:
    """How engines are believed, and what the gateway shows them; None for plaintext.

    Raises:
        ValueError: a file is missing or no PEM, something that belongs together is not, or ZeroMQ has TLS.
    """
    tls = ClientTls.from_files(
        settings.engine_tls_ca, settings.engine_tls_cert, settings.engine_tls_key, settings.engine_tls_name
    )
    if tls is not None and not is_grpc(settings.engine):
        raise ValueError("only gRPC takes TLS; leave --engine-tls-ca out")
    return tls


def engine_tokens(settings: GatewaySettings) -> Tokens | None:
    """What the gateway shows its engine or proxy; None for nothing.

    Raises:
        ValueError: the file cannot be used, or `ipc://` has one: there the folder says who may come in.
    """
    tokens = Tokens.from_file(settings.engine_token_file)
    if tokens is not None and not is_grpc(settings.engine):
        raise ValueError("only gRPC has tokens; leave --engine-token-file out")
    return tokens


def is_grpc(engine: str) -> bool:
    """Whether an engine's address is one of gRPC rather than of ZeroMQ."""
    return not is_core_endpoint(engine)


def connect_engine(settings: GatewaySettings) -> EngineClient:
    """Make the client for the configured engine: ZeroMQ for `ipc://` and `tcp://`, gRPC for anything else.

    Raises:
        ValueError: the settings for TLS, tokens or keys are wrong.
    """
    cores, curve = engine_cores(settings)
    tls, tokens = engine_tls(settings), engine_tokens(settings)
    if cores:
        return connect_cores(cores, curve)
    from rhizome_transport.grpc_client import GrpcEngineClient

    return GrpcEngineClient(settings.engine, peer_name="rhizome-gateway", tls=tls, tokens=tokens)


def _api(settings: GatewaySettings, lifespan: Any) -> FastAPI:
    api = FastAPIOffline(  # /docs without scripts from other hosts
        title="Rhizome",
        version=__version__,
        summary="Large language models behind the OpenAI API.",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    api.state.settings = settings
    api.state.draining = False
    for module in (models, health, metrics, tokenizer_info, page_files, pulse):
        api.include_router(module.router)
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(EngineError, _engine_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _validation_error)
    api.add_exception_handler(Exception, _bug)
    api.openapi = lambda: _openapi(api)  # type: ignore[method-assign]
    return api


def _error_body_of(scope: Scope) -> ErrorBody:
    """The envelope on paths that several APIs have: that of the one which the client says it speaks."""
    return anthropic_errors.error_body if speaks_anthropic(scope) else openai_error_body


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    body = _error_body_of(request.scope)(error, request_id_of(request.scope))
    return Response(body, error.status, error.headers, media_type="application/json")


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
    """FastAPI's document, and the routes that it does not serve."""
    if not api.openapi_schema:
        document = get_openapi(title=api.title, version=api.version, summary=api.summary, routes=api.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for route in hot_routes(api.state.runtime):
            document["paths"][route.path] = {"post": route.operation(schemas)}
        complete(document, needs_key=api.state.settings.keys_file is not None)
        api.openapi_schema = document
    return api.openapi_schema
