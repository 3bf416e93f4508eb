"""`GET /v1/models`: what is served, and under which names.

A client that speaks Anthropic's API says so in a header, and gets the same in that API's form.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from rhizome_gateway.anthropic import models as anthropic_models
from rhizome_gateway.auth.caller import SCOPE_KEY, Caller
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.http.boundary import request_id_of
from rhizome_gateway.served_model import ServedModel

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", summary="List models")
async def list_models(request: Request) -> Any:
    """List what the caller may ask for: the served model, then its aliases."""
    session: EngineSession = request.app.state.session
    caller = _caller(request)
    await session.catch_up()
    names = [name for name in session.model_names() if caller is None or caller.allows(name)]
    if anthropic_models.speaks_anthropic(request.scope):
        models = [
            anthropic_models.model_object(name, session.model(name), session.model_since) for name in names
        ]
        page = anthropic_models.model_page(models, request.query_params)
        return anthropic_models.model_response(page, request_id_of(request.scope))
    return {"object": "list", "data": [_model_object(name, session.model(name), session) for name in names]}


@router.get("/{model_id:path}", summary="Describe a model")
async def retrieve_model(request: Request, model_id: str) -> Any:
    """Describe one model, by any name that a request may use; names may contain slashes."""
    session: EngineSession = request.app.state.session
    caller = _caller(request)
    if caller is not None:
        caller.require_model(model_id)
    await session.catch_up()
    served = session.model(model_id)
    if anthropic_models.speaks_anthropic(request.scope):
        model = anthropic_models.model_object(model_id, served, session.model_since)
        return anthropic_models.model_response(model, request_id_of(request.scope))
    return _model_object(model_id, served, session)


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
