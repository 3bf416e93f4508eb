"""The spans of one request, made at its end from the times the core kept anyway; of an `Embed` one span only.

rhizome.engine.v1.EngineService/Generate (SERVER)
├── rhizome.queue     arrival .. first scheduled
├── rhizome.prefill   first scheduled .. first token
└── rhizome.decode    first token .. last token
"""

from __future__ import annotations

import time

from rhizome_engine.core.embed_call import EmbedCall
from rhizome_engine.core.events import FailedEvent, FinishedEvent
from rhizome_engine.scheduler.request import FinishReason, Request, Timings
from rhizome_telemetry import semconv
from rhizome_telemetry.rpc import end_rpc_span, start_server_span
from rhizome_telemetry.tracing import start_span, tracing_enabled
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.errors import EngineError

_METHOD = f"{ENGINE_SERVICE}/Generate"
_EMBED_METHOD = f"{ENGINE_SERVICE}/Embed"


def record_request(event: FinishedEvent | FailedEvent, model: str) -> None:
    """Record a request that ended just now; costs nothing while tracing is off."""
    if not tracing_enabled():
        return
    request, end_ns = event.request, time.time_ns()
    span = start_server_span(_METHOD, request.trace, start_time_ns=request.arrival_unix_ns)
    if not span.recording:
        return
    usage = event.usage
    span.set_attributes(
        {
            semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER_NAME,
            semconv.GEN_AI_REQUEST_MODEL: model,
            semconv.REQUEST_ID: request.request_id,
            semconv.GEN_AI_USAGE_INPUT_TOKENS: usage.prompt_tokens,
            semconv.GEN_AI_USAGE_OUTPUT_TOKENS: usage.completion_tokens,
            semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: usage.cached_tokens,
            semconv.REQUEST_PREEMPTIONS: usage.preemptions,
            semconv.REQUEST_FORCED_TOKENS: usage.forced_tokens,
        }
    )
    for name, start_ns, stop_ns in phases(request, event.timings, end_ns):
        phase = start_span(name, parent=span.trace_parent, start_time_ns=start_ns)
        phase.end("ok", stop_ns)
    if isinstance(event, FailedEvent):
        end_rpc_span(span, event.error.code.name, event.error.message, server=True, end_time_ns=end_ns)
    else:
        span.set_attribute(semconv.GEN_AI_RESPONSE_FINISH_REASONS, [event.reason.value])
        code = "CANCELLED" if event.reason is FinishReason.CANCELLED else "OK"
        end_rpc_span(span, code, server=True, end_time_ns=end_ns)


def record_embed(call: EmbedCall, error: EngineError | None, model: str) -> None:
    """Record an `Embed` that was answered just now, its inputs as one; costs nothing while tracing is off."""
    if not tracing_enabled():
        return
    arrival_ns = call.requests[0].arrival_unix_ns
    span = start_server_span(_EMBED_METHOD, call.trace, start_time_ns=arrival_ns)
    span.set_attributes(
        {
            semconv.GEN_AI_OPERATION_NAME: semconv.OPERATION_EMBEDDINGS,
            semconv.GEN_AI_PROVIDER_NAME: semconv.PROVIDER_NAME,
            semconv.GEN_AI_REQUEST_MODEL: model,
            semconv.REQUEST_ID: call.request_id or None,
            semconv.GEN_AI_USAGE_INPUT_TOKENS: call.usage.prompt_tokens,
            semconv.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: call.usage.cached_tokens,
            semconv.REQUEST_PREEMPTIONS: call.usage.preemptions,
        }
    )
    if error is None:
        end_rpc_span(span, "OK", server=True, end_time_ns=time.time_ns())
    else:
        end_rpc_span(span, error.code.name, error.message, server=True, end_time_ns=time.time_ns())


def phases(request: Request, timings: Timings, end_ns: int) -> list[tuple[str, int, int]]:
    """Name, start and end, in nanoseconds since the epoch, of each phase that was reached."""
    scheduled_ns = request.arrival_unix_ns + round(timings.queue_s * 1e9)
    found = [(semconv.SPAN_QUEUE, request.arrival_unix_ns, scheduled_ns)]
    if request.first_scheduled is not None:
        first_token_ns = scheduled_ns + round(timings.prefill_s * 1e9)
        found.append((semconv.SPAN_PREFILL, scheduled_ns, first_token_ns))
        if request.first_token is not None:
            decoded_ns = first_token_ns + round(timings.decode_s * 1e9)
            found.append((semconv.SPAN_DECODE, first_token_ns, decoded_ns))
    return [(name, start, max(start, min(stop, end_ns))) for name, start, stop in found]
