"""Probes: is the process alive, can it answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from rhizome_gateway import __version__
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.routes.models import default_sampling

router = APIRouter(tags=["health"])


@router.head("/health", include_in_schema=False)
@router.get("/health", summary="Is the gateway alive?")
async def health() -> dict[str, str]:
    """200 while the process runs, whatever the engines do."""
    return {"status": "healthy"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", summary="Can the gateway answer?")
async def ready(request: Request) -> JSONResponse:
    """200 while an engine answers and the gateway is not shutting down, else 503."""
    session: EngineSession = request.app.state.session
    if session.ready and not request.app.state.draining:
        return JSONResponse({"status": "ready", "model_loaded": True})
    error = session.unavailable()
    content: dict[str, Any] = {"status": "not_ready", "model_loaded": session.known_model is not None}
    return JSONResponse(content | error.envelope(), error.status, error.headers)


@router.get("/version", summary="Which versions are these?")
async def version(request: Request) -> dict[str, Any]:
    """The gateway's version, and what the engine said of itself when it answered last; else null."""
    session: EngineSession = request.app.state.session
    served = session.known_model
    info = None if served is None else served.info
    return {
        "version": __version__,
        "engine_version": info.version if info else None,
        "model": info.model if info else None,
        "architecture": info.architecture if info else None,
        "dtype": info.dtype if info else None,
        "max_model_len": info.max_context_tokens if info else None,
        "system_fingerprint": served.fingerprint if served else None,
        "default_sampling": default_sampling(served) if served else None,
    }
