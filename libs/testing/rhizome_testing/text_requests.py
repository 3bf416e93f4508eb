"""Requests with text for `Generate`, and what came back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse


def text_request(text: str, max_tokens: int = 12, **fields: Any) -> GenerateRequest:
    """A greedy request for exactly so many tokens."""
    request = GenerateRequest(text=text, **fields)
    request.sampling.temperature = 0
    request.stop.max_tokens = max_tokens
    request.stop.ignore_eos = True
    return request


async def run(stub: Any, request: GenerateRequest) -> list[GenerateResponse]:
    """All events of a request; `stub` is an `EngineServiceStub`."""
    return [event async for event in stub.Generate(request, timeout=30)]


def text_of(events: Sequence[GenerateResponse]) -> str:
    """The text of all deltas."""
    return "".join(event.delta.text for event in events)


def ids_of(events: Sequence[GenerateResponse]) -> list[int]:
    """The tokens of all deltas."""
    return [token for event in events for token in event.delta.token_ids]
