"""Log lines about one request, with its ids; never with what it says."""

from __future__ import annotations

import logging

import grpc

from rhizome_engine.core.events import FailedEvent, FinishedEvent
from rhizome_telemetry.logs import about

_log = logging.getLogger(__name__)

_OUR_FAULTS = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.ABORTED}
)


def log_end(event: FinishedEvent | FailedEvent) -> None:
    """Tell how a request ended: a warning where the engine is to blame, else a detail."""
    level = logging.DEBUG
    if isinstance(event, FailedEvent) and event.error.code in _OUR_FAULTS:
        level = logging.WARNING
    if not _log.isEnabledFor(level):
        return
    request, usage, timings = event.request, event.usage, event.timings
    if isinstance(event, FailedEvent):
        ended = f"{event.error.code.name}: {event.error.message}"
    else:
        ended = event.reason.value
    _log.log(
        level,
        "%s ended: %s; tokens: %d in the prompt, %d of them cached, %d generated; "
        "seconds: %.3f queued, %.3f prefill, %.3f decode",
        request.request_id,
        ended,
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens,
        timings.queue_s,
        timings.prefill_s,
        timings.decode_s,
        extra=about(request.trace, request.request_id),
    )
