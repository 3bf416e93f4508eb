"""The time that a request has: what is left of it, as it travels, and its end."""

from __future__ import annotations

import time

import grpc
from google.protobuf.duration_pb2 import Duration

from rhizome_transport.errors import EngineError


def left(deadline: float | None) -> float | None:
    """Seconds until a moment of the monotonic clock, none when it is over; `None` is never."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def duration(seconds: float) -> Duration:
    """As it travels in a frame; not less than nothing."""
    message = Duration()
    message.FromNanoseconds(max(0, int(seconds * 1e9)))
    return message


def too_late(timeout_s: float | None) -> EngineError:
    """What a request is told whose time is over, and whose engine does not say so."""
    return EngineError(
        grpc.StatusCode.DEADLINE_EXCEEDED, f"the engine did not finish within {timeout_s or 0:g} s"
    )
