"""How every route that needs a model begins: the body is checked, and the caller may ask for that model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rhizome_gateway.auth.caller import Caller, caller_of
from rhizome_gateway.http.exchange import Exchange
from rhizome_gateway.runtime import Runtime
from rhizome_gateway.schema.validation import read_request
from rhizome_gateway.served_model import ServedModel


class NamesModel(Protocol):
    """A checked request that says which model it is for."""

    model: str


RequestT = TypeVar("RequestT", bound=NamesModel)


@dataclass(frozen=True, slots=True)
class Asked(Generic[RequestT]):
    """What a route begins with.

    Attributes:
        request: checked.
        fields: as they were sent.
        caller: who asks.
        served: the model that is asked for.
        arrived: when, by `time.monotonic`.
    """

    request: RequestT
    fields: dict[str, Any]
    caller: Caller
    served: ServedModel
    arrived: float


async def read_asked(runtime: Runtime, exchange: Exchange, schema: type[RequestT]) -> Asked[RequestT]:
    """Read and check a request.

    Raises:
        ApiError: the body is wrong, the caller may not use the model, it is not served, or nothing is.
    """
    arrived = time.monotonic()
    request, fields = await read_request(runtime, exchange, schema)  # type: ignore[type-var]
    caller = caller_of(exchange.scope)
    caller.require_model(request.model)
    return Asked(request, fields, caller, runtime.session.model(request.model), arrived)
