"""`GET /v1/models`: what is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from rhizome_gateway.engine_session import EngineSession, ServedModel

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """List what this server can be asked for."""
    session: EngineSession = request.app.state.session
    served = session.known_model
    if served is None:
        raise session.unavailable()
    return {"object": "list", "data": [_model_object(served, session)]}


@router.get("/{model_id:path}", summary="Describe a model")
async def retrieve_model(request: Request, model_id: str) -> dict[str, Any]:
    """Describe one model; ids may contain slashes."""
    session: EngineSession = request.app.state.session
    return _model_object(session.model(model_id), session)


def _model_object(served: ServedModel, session: EngineSession) -> dict[str, Any]:
    info = served.info
    return {
        "id": info.model,
        "object": "model",
        "created": session.model_since,
        "owned_by": "rhizome",
        "max_model_len": info.max_context_tokens,
        "architecture": info.architecture,
        "dtype": info.dtype,
        "parameters": info.num_parameters,
        # Fields left out of a request take these, where the checkpoint names any.
        "default_sampling": {
            field.name: round(value, 6)
            for field, value in info.default_sampling.ListFields()
            if field.name != "logit_bias"
        },
    }
