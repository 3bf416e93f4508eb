"""Which model is meant where a request need not say."""

from __future__ import annotations

from rhizome_gateway.auth.caller import Caller
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.served_model import ServedModel


def served_model(session: EngineSession, caller: Caller, name: str | None) -> ServedModel:
    """The model of that name; without one, the model that is served, if the caller may use it by any name.

    Raises:
        ApiError: 403, 404, or 503 while no model is served.
    """
    if name is None:
        names = session.model_names()
        name = next(filter(caller.allows, names), names[0])
    caller.require_model(name)
    return session.model(name)
