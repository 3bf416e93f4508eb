"""What all event streams of the OpenAI API share."""

from __future__ import annotations

from rhizome_gateway.errors import ApiError

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def error_event(error: ApiError) -> bytes:
    """An error after the status line was sent."""
    return b"data: " + error.body() + b"\n\n"
