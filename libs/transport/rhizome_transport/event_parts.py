"""Events as they stand in a serialised EngineFrame; joined behind one another they are its list of events.

A step with 64 streams makes 64 events of a token each. To build a message with three messages in it for each
of them, and to serialise it, takes several times as long as joining parts that were serialised before: there
are only so many tokens, and a request's id stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from rhizome.engine.v1.frames_pb2 import EngineFrame, RequestEvent
from rhizome.engine.v1.generate_pb2 import GenerateResponse, TokenDelta
from rhizome_transport.wire import field

_EVENTS: Final = EngineFrame.DESCRIPTOR.fields_by_name["events"].number
_SHORT: Final = 128
_HEADS: Final = [field(_EVENTS, bytes(size))[:2] for size in range(_SHORT)]
"""Key and length of an event of fewer bytes than that, which both fit one byte."""


def event_field(event: RequestEvent) -> bytes:
    """Any event."""
    return field(_EVENTS, event.SerializeToString())


def tokens_field(request_id: str, token_ids: Sequence[int]) -> bytes:
    """An event with nothing but tokens."""
    delta = _one_token(token_ids[0]) if len(token_ids) == 1 else _delta(token_ids)
    # What a peer chose is kept in memory only while it is short.
    request = _request(request_id) if len(request_id) < _SHORT else _request.__wrapped__(request_id)
    event = request + delta
    size = len(event)
    return _HEADS[size] + event if size < _SHORT else field(_EVENTS, event)


@lru_cache(maxsize=16_384)
def _request(request_id: str) -> bytes:
    """The part of an event that names its request."""
    return RequestEvent(request_id=request_id).SerializeToString()


@lru_cache(maxsize=65_536)
def _one_token(token_id: int) -> bytes:
    return _delta((token_id,))


def _delta(token_ids: Sequence[int]) -> bytes:
    """The part of an event that has its tokens."""
    response = GenerateResponse(delta=TokenDelta(token_ids=token_ids))
    return RequestEvent(response=response).SerializeToString()
