"""`GET /v1/models`: what is served, and under which names."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from rhizome_gateway.auth.caller import SCOPE_KEY, Caller
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.served_model import ServedModel

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List models")
async def list_models(request: Request) -> dict[str, Any]:
    """List what the caller may ask for: the served model, then its aliases."""
    session: EngineSession = request.app.state.session
    caller = _caller(request)
    await session.catch_up()
    names = [name for name in session.model_names() if caller is None or caller.allows(name)]
    return {"object": "list", "data": [_model_object(name, session.model(name), session) for name in names]}


@router.get("/{model_id:path}", summary="Describe a model")
async def retrieve_model(request: Request, model_id: str) -> dict[str, Any]:
    """Describe one model, by any name that a request may use; names may contain slashes."""
    session: EngineSession = request.app.state.session
    caller = _caller(request)
    if caller is not None:
        caller.require_model(model_id)
    await session.catch_up()
    return _model_object(model_id, session.model(model_id), session)


def default_sampling(served: ServedModel) -> dict[str, Any]:
    """What fields that are left out of a request take, where the checkpoint names any."""
    return {
        field.name: round(value, 6)
        for field, value in served.info.default_sampling.ListFields()
        if field.name != "logit_bias"
    }


def _caller(request: Request) -> Caller | None:
    caller = request.scope.get(SCOPE_KEY)
    return caller if isinstance(caller, Caller) else None


def _model_object(name: str, served: ServedModel, session: EngineSession) -> dict[str, Any]:
    info = served.info
    return {
        "id": name,
        "object": "model",
        "created": session.model_since,
        "owned_by": "rhizome",
        "root": info.model,
        "max_model_len": info.max_context_tokens,
        "architecture": info.architecture,
        "dtype": info.dtype,
        "parameters": info.num_parameters,
        "default_sampling": default_sampling(served),
    }
