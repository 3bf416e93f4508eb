"""Probes: is the process alive, can it answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from rhizome_gateway import __version__
from rhizome_gateway.engine_session import EngineSession

router = APIRouter(tags=["health"])


@router.get("/health", summary="Is the gateway alive?")
async def health() -> dict[str, str]:
    """200 while the process runs, whatever the engines do."""
    return {"status": "healthy"}


@router.get("/ready", summary="Can the gateway answer?")
async def ready(request: Request) -> JSONResponse:
    """200 while an engine answers and the gateway is not shutting down, else 503."""
    session: EngineSession = request.app.state.session
    if session.ready and not request.app.state.draining:
        return JSONResponse({"status": "ready", "model_loaded": True})
    error = session.unavailable()
    content: dict[str, Any] = {"status": "not_ready", "model_loaded": session.known_model is not None}
    return JSONResponse(content | error.envelope(), error.status, error.headers)


@router.get("/version", summary="Which version is this?")
async def version() -> dict[str, str]:
    """The gateway's version."""
    return {"version": __version__}
