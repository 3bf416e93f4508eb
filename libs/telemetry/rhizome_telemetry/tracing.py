"""Spans, and the one switch that turns them on.

Without an OTLP endpoint in the environment nothing of the SDK is imported and a span is a tiny object that
only carries the trace context onwards: a trace id always exists (for logs and response headers) and costs
next to nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from opentelemetry.trace import SpanKind

from rhizome_telemetry.propagation import RANDOM_TRACE_ID, TraceParent
from rhizome_telemetry.random_ids import random_hex

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

    from rhizome_telemetry.recorded_span import AttributeValue

__all__ = [
    "Span",
    "SpanKind",
    "SpanStatus",
    "configure_tracing",
    "shutdown_tracing",
    "start_span",
    "tracing_enabled",
]

SpanStatus = Literal["ok", "error", "cancelled"]

_log = logging.getLogger(__name__)
_SHUTDOWN_LIMIT_S = 5.0

_provider: TracerProvider | None = None
_tracer: Tracer | None = None
_follows_parents = False


class Span:
    """A span that records nothing; `recorded_span.RecordedSpan` is the one that does.

    As a context manager it ends by itself: `cancelled` when the block was cancelled or its generator closed,
    `error` when another exception left it, else `ok`.

    Attributes:
        trace_parent: what callees are given as their parent.
    """

    __slots__ = ("trace_parent",)

    def __init__(self, trace_parent: TraceParent) -> None:
        self.trace_parent = trace_parent

    @property
    def recording(self) -> bool:
        """Whether attributes are kept; skip work that only prepares them when not."""
        return False

    def update_name(self, name: str) -> None:
        """Rename the span, for names that are known only at the end, such as a route."""

    def set_attribute(self, key: str, value: AttributeValue | None) -> None:
        """Keep one attribute; `None` is ignored."""

    def set_attributes(self, attributes: Mapping[str, AttributeValue | None]) -> None:
        """Keep several attributes; those that are `None` are ignored."""

    def add_event(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue | None] | None = None,
        timestamp_ns: int | None = None,
    ) -> None:
        """Note that something happened, now or at a time in nanoseconds since the epoch."""

    def record_error(self, error: BaseException | str) -> None:
        """Keep what went wrong; the span then ends as an error unless it ends as cancelled."""

    def end(self, status: SpanStatus = "ok", end_time_ns: int | None = None) -> None:
        """Finish, now or at a time in nanoseconds since the epoch; further calls do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.end()
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self.end("cancelled")
        else:
            self.record_error(error)
            self.end("error")


def start_span(
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    parent: TraceParent | None = None,
    attributes: Mapping[str, AttributeValue | None] | None = None,
    start_time_ns: int | None = None,
    links: Iterable[TraceParent] = (),
) -> Span:
    """Begin a span below `parent`, or a new trace where there is none.

    With tracing off the parent itself is handed on, so that the spans of the services that do record still
    connect; at the edge a new, unsampled trace id is made up. The same is done below a parent that was not
    sampled, where the sampler follows parents anyway: asking the SDK takes ten times as long.
    """
    if parent is not None and (_tracer is None or (_follows_parents and not parent.sampled)):
        return Span(parent)
    if _tracer is None:
        ids = random_hex(48)
        return Span(TraceParent(ids[:32], ids[32:], RANDOM_TRACE_ID))
    from rhizome_telemetry.recorded_span import start_recorded_span

    return start_recorded_span(_tracer, name, kind, parent, attributes, start_time_ns, links)


def tracing_enabled() -> bool:
    """Whether spans are recorded and exported."""
    return _tracer is not None


def configure_tracing(service_name: str) -> None:
    """Export spans over OTLP/HTTP if the standard `OTEL_*` variables ask for it.

    Nothing happens unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` is set; with
    `OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none` nothing happens either. `OTEL_SERVICE_NAME`,
    `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER` and `OTEL_BSP_*` mean what the SDK says. A second call
    does nothing.
    """
    global _follows_parents, _provider, _tracer
    if _provider is not None or not _wanted():
        return
    from rhizome_telemetry.export import build_provider, follows_parents

    _provider = build_provider(os.environ.get("OTEL_SERVICE_NAME") or service_name)
    _follows_parents = follows_parents(_provider)
    _tracer = _provider.get_tracer("rhizome")


def shutdown_tracing() -> None:
    """Send what is waiting and stop; a collector that does not answer delays this by 5 s at most."""
    global _provider, _tracer
    provider, _provider, _tracer = _provider, None, None
    if provider is None:
        return
    flushing = threading.Thread(target=provider.shutdown, name="tracing-shutdown", daemon=True)
    flushing.start()
    flushing.join(_SHUTDOWN_LIMIT_S)
    if flushing.is_alive():
        _log.warning("spans are lost: the collector did not take them within %.0f s", _SHUTDOWN_LIMIT_S)


def _wanted() -> bool:
    env = os.environ
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if env.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    if not (env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")):
        return False
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol and not protocol.startswith("http/"):
        _log.warning(
            "OTEL_EXPORTER_OTLP_PROTOCOL is %r, but spans are sent as http/protobuf; "
            "point the endpoint at the collector's HTTP port (usually 4318)",
            protocol,
        )
    return True
