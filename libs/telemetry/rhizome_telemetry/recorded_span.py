"""A span that the SDK records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from rhizome_telemetry import semconv
from rhizome_telemetry.propagation import TraceParent
from rhizome_telemetry.tracing import Span, SpanStatus

AttributeValue = str | bool | int | float | Sequence[str] | Sequence[bool] | Sequence[int] | Sequence[float]


class RecordedSpan(Span):
    """Wraps an SDK span; one that the sampler left out still carries its context."""

    __slots__ = ("_ended", "_error", "_span")

    def __init__(self, span: trace.Span, request_id: str = "") -> None:
        context = span.get_span_context()
        super().__init__(
            TraceParent(
                f"{context.trace_id:032x}",
                f"{context.span_id:016x}",
                int(context.trace_flags),
                context.trace_state.to_header(),
                request_id,
            )
        )
        self._span = span
        self._ended = False
        self._error: str | None = None

    @property
    def recording(self) -> bool:
        """Whether the sampler kept this span and it has not ended."""
        return self._span.is_recording()

    def update_name(self, name: str) -> None:
        """See `Span`."""
        self._span.update_name(name)

    def set_attribute(self, key: str, value: AttributeValue | None) -> None:
        """See `Span`."""
        if value is not None:
            self._span.set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue | None]) -> None:
        """See `Span`."""
        self._span.set_attributes(_present(attributes))

    def add_event(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue | None] | None = None,
        timestamp_ns: int | None = None,
    ) -> None:
        """See `Span`."""
        self._span.add_event(name, _present(attributes or {}), timestamp_ns)

    def record_error(self, error: BaseException | str) -> None:
        """See `Span`."""
        if isinstance(error, BaseException):
            self._span.record_exception(error)
            self._span.set_attribute(semconv.ERROR_TYPE, type(error).__name__)
            self._error = str(error) or type(error).__name__
        else:
            self._error = error

    def end(self, status: SpanStatus = "ok", end_time_ns: int | None = None) -> None:
        """See `Span`. Success leaves the status unset, which is what the conventions ask for."""
        if self._ended:
            return
        self._ended = True
        if status == "cancelled":
            self._span.set_attribute(semconv.ERROR_TYPE, semconv.ERROR_TYPE_CANCELLED)
            self._span.set_status(Status(StatusCode.ERROR, "cancelled"))
        elif status == "error" or self._error is not None:
            self._span.set_status(Status(StatusCode.ERROR, self._error))
        self._span.end(end_time_ns)


def start_recorded_span(
    tracer: trace.Tracer,
    name: str,
    kind: SpanKind,
    parent: TraceParent | None,
    attributes: Mapping[str, AttributeValue | None] | None,
    start_time_ns: int | None,
    links: Iterable[TraceParent] = (),
) -> Span:
    """Begin an SDK span; parents are always explicit, the ambient OpenTelemetry context is never asked."""
    above = trace.NonRecordingSpan(_remote(parent)) if parent else trace.INVALID_SPAN
    span = tracer.start_span(
        name,
        trace.set_span_in_context(above, Context()),
        kind,
        attributes=_present(attributes or {}),
        links=[trace.Link(_remote(linked)) for linked in links],
        start_time=start_time_ns,
    )
    return RecordedSpan(span, parent.request_id if parent else "")


def _remote(parent: TraceParent) -> SpanContext:
    state = TraceState.from_header([parent.tracestate]) if parent.tracestate else TraceState()
    return SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(parent.flags),
        trace_state=state,
    )


def _present(attributes: Mapping[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {key: value for key, value in attributes.items() if value is not None}
