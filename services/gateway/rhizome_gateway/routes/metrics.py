"""Numbers: `/v1/metrics` for a page that polls, `/metrics` for Prometheus."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from rhizome_gateway.auth.caller import caller_of
from rhizome_gateway.metrics.live import LiveFigures
from rhizome_gateway.runtime import Runtime

router = APIRouter(tags=["metrics"])


@router.get("/v1/metrics", summary="What is the server doing now?", response_class=Response)
async def live_figures(request: Request) -> Response:
    """Processors, memory, GPU, engine, cache and queue; null where nobody can tell."""
    live: LiveFigures = request.app.state.live
    return Response(
        orjson.dumps(await live.read()),
        media_type="application/json",
        headers={"cache-control": "no-store"},
    )


@router.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
def prometheus_metrics(request: Request) -> Response:
    """All counters and histograms, in Prometheus's text format; made on a thread.

    What tells about tenants is for keys with `admin = true`.
    """
    runtime: Runtime = request.app.state.runtime
    text = runtime.metrics.text(tenants=caller_of(request.scope).admin)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
