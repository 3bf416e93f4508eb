"""Events in the life of a request, as a scripted engine sends them."""

from __future__ import annotations

from rhizome.engine.v1.frames_pb2 import RequestEvent
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_LENGTH,
    Finished,
    FinishReason,
    GenerateResponse,
    Started,
    TokenDelta,
)
from rhizome_transport.errors import EngineError


def started_event(request_id: str) -> RequestEvent:
    """The request left the queue."""
    return RequestEvent(
        request_id=request_id, response=GenerateResponse(started=Started(prompt_tokens=3, cached_tokens=1))
    )


def delta_event(request_id: str, *token_ids: int) -> RequestEvent:
    """Tokens came out."""
    return RequestEvent(
        request_id=request_id, response=GenerateResponse(delta=TokenDelta(token_ids=token_ids))
    )


def finished_event(request_id: str, reason: FinishReason.ValueType = FINISH_REASON_LENGTH) -> RequestEvent:
    """The request ended."""
    return RequestEvent(
        request_id=request_id, response=GenerateResponse(finished=Finished(reason=reason)), final=True
    )


def refused_event(request_id: str, error: EngineError) -> RequestEvent:
    """The request failed."""
    return RequestEvent(request_id=request_id, status=error.to_status(), final=True)
