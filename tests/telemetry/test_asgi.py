"""The HTTP middleware, driven by ASGI messages and by a real FastAPI app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from rhizome_telemetry import semconv
from rhizome_telemetry.asgi import SCOPE_KEY, TracingMiddleware
from rhizome_telemetry.logs import log_trace_id
from rhizome_telemetry.propagation import parse_traceparent
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing
from rhizome_testing.otlp_sink import OtlpSink, SunkSpan

TRACE = "a" * 32
HEADERS = {"traceparent": f"00-{TRACE}-{'b' * 16}-01"}


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    monkeypatch.delenv("OTEL_SDK_DISABLED", raising=False)
    with OtlpSink() as sink:
        for name, value in sink.environment.items():
            monkeypatch.setenv(name, value)
        configure_tracing("rhizome-gateway")
        yield sink
        shutdown_tracing()


def application() -> Any:
    app = FastAPI()

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, str]:
        return {"model": model, "trace": log_trace_id.get()}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b"data: x\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream")

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("a bug")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {}

    return TracingMiddleware(app)


async def get(path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(application(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, **options)


def only(sink: OtlpSink) -> SunkSpan:
    (span,) = sink.wait_for(lambda spans: len(spans) == 1)
    return span


async def test_one_server_span_named_by_the_route(sink):
    response = await get("/v1/models/demo", headers=HEADERS)
    span = only(sink)
    assert (span.name, span.kind, span.status) == ("GET /v1/models/{model}", "SERVER", "UNSET")
    assert (span.trace_id, span.parent_span_id) == (TRACE, "b" * 16)
    assert span.attributes[semconv.HTTP_RESPONSE_STATUS_CODE] == 200
    assert span.attributes[semconv.HTTP_ROUTE] == "/v1/models/{model}"
    assert response.headers["x-trace-id"] == TRACE
    parent = parse_traceparent(response.headers["traceparent"])
    assert parent is not None
    assert parent.span_id == span.span_id
    assert response.json()["trace"] == TRACE
    assert log_trace_id.get() == ""


async def test_a_stream_of_many_chunks_is_one_span(sink):
    assert len((await get("/stream")).content) == 50 * 9
    assert only(sink).name == "GET /stream"


async def test_paths_without_a_route_do_not_name_spans(sink):
    assert (await get("/who/knows/what")).status_code == 404
    span = only(sink)
    assert (span.name, span.status) == ("GET", "UNSET")


async def test_a_bug_is_an_error(sink):
    assert (await get("/broken")).status_code == 500
    span = only(sink)
    assert (span.name, span.status) == ("GET /broken", "ERROR")


async def test_probes_are_not_traced(sink):
    response = await get("/health")
    assert "x-trace-id" not in response.headers
    await get("/v1/models/demo")
    assert only(sink).name == "GET /v1/models/{model}"


async def test_without_an_exporter_responses_still_name_a_trace():
    response = await get("/v1/models/demo")
    assert len(response.headers["x-trace-id"]) == 32
    assert (await get("/v1/models/demo", headers=HEADERS)).headers["x-trace-id"] == TRACE


def scope() -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}


async def streaming_app(scope: Any, receive: Any, send: Any) -> None:
    """Streams until the client is gone, as an SSE endpoint does."""
    assert scope[SCOPE_KEY] is not None
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_a_client_that_disconnects_makes_the_span_cancelled(sink):
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    await TracingMiddleware(streaming_app)(scope(), receive, send)
    span = only(sink)
    assert (span.status, span.status_message) == ("ERROR", "cancelled")
    assert span.attributes[semconv.ERROR_TYPE] == "cancelled"


async def test_a_send_that_finds_nobody_makes_the_span_cancelled(sink):
    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("client is gone")

    with pytest.raises(OSError, match="gone"):
        await TracingMiddleware(streaming_app)(scope(), receive, send)
    assert only(sink).status_message == "cancelled"


async def test_a_cancelled_task_makes_the_span_cancelled(sink):
    started = asyncio.Event()

    async def receive() -> dict[str, Any]:
        started.set()
        await asyncio.Event().wait()
        return {}

    async def send(message: Any) -> None:
        pass

    task = asyncio.create_task(_call(TracingMiddleware(streaming_app), receive, send))
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert only(sink).status_message == "cancelled"


async def _call(app: TracingMiddleware, receive: Any, send: Any) -> None:
    await app(scope(), receive, send)
