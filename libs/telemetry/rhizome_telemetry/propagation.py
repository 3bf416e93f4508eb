"""W3C trace context, wherever it travels: HTTP headers, gRPC metadata, protobuf messages.

A malformed header is somebody else's mistake and must never fail a request, so every reader here answers
`None` instead of raising.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rhizome.common.v1.common_pb2 import TraceContext

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
REQUEST_ID = "x-request-id"

SAMPLED = 0x01
RANDOM_TRACE_ID = 0x02

_VERSION_AND_FIELDS = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MAX_TRACESTATE_CHARS = 512
_MAX_REQUEST_ID_CHARS = 256


@dataclass(frozen=True, slots=True)
class TraceParent:
    """Names one span of one trace, so that another process can hang its spans below it.

    Attributes:
        trace_id: 32 lower-case hex digits, not all zero.
        span_id: 16 lower-case hex digits, not all zero.
        flags: W3C trace flags; `SAMPLED` and `RANDOM_TRACE_ID` are the bits in use.
        tracestate: the vendors' list, passed on untouched.
        request_id: what the client was told its request is called, for log lines on every hop; it is no part
            of W3C's context, but travels with it. Spans hand it on to those below them.
    """

    trace_id: str
    span_id: str
    flags: int = SAMPLED | RANDOM_TRACE_ID
    tracestate: str = ""
    request_id: str = ""

    @property
    def sampled(self) -> bool:
        """Whether the caller records this trace."""
        return bool(self.flags & SAMPLED)

    def to_header(self) -> str:
        """The value of a `traceparent` header."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parse_traceparent(header: str | None, tracestate: str = "", request_id: str = "") -> TraceParent | None:
    """Read a `traceparent` header; `None` when there is none or it is malformed.

    Versions above 00 may carry more fields after the four known ones (W3C Trace Context, section 3.2.4).
    """
    match = _VERSION_AND_FIELDS.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if not trace_id.strip("0") or not span_id.strip("0"):
        return None
    kept = tracestate if len(tracestate) <= _MAX_TRACESTATE_CHARS else ""
    return TraceParent(trace_id, span_id, int(flags, 16), kept, request_id[:_MAX_REQUEST_ID_CHARS])


def from_metadata(metadata: Iterable[tuple[str, str | bytes]] | None) -> TraceParent | None:
    """Read gRPC metadata, as `context.invocation_metadata()` gives it."""
    found = {
        key: value
        for key, value in metadata or ()
        if key in (TRACEPARENT, TRACESTATE, REQUEST_ID) and isinstance(value, str)
    }
    return parse_traceparent(found.get(TRACEPARENT), found.get(TRACESTATE, ""), found.get(REQUEST_ID, ""))


def to_metadata(parent: TraceParent | None) -> list[tuple[str, str]]:
    """Write gRPC metadata; empty when there is nothing to pass on."""
    if parent is None:
        return []
    metadata = [(TRACEPARENT, parent.to_header())]
    if parent.tracestate:
        metadata.append((TRACESTATE, parent.tracestate))
    if parent.request_id.isascii() and parent.request_id.isprintable() and parent.request_id:
        metadata.append((REQUEST_ID, parent.request_id))
    return metadata


def from_headers(headers: Iterable[tuple[bytes, bytes]]) -> TraceParent | None:
    """Read the headers of an ASGI scope; two `traceparent` headers count as none, as W3C demands."""
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"traceparent":
            parents.append(value)
        elif lowered == b"tracestate":
            states.append(value)
    if len(parents) != 1:
        return None
    return parse_traceparent(parents[0].decode("latin-1"), b",".join(states).decode("latin-1"))


def from_proto(context: TraceContext | None) -> TraceParent | None:
    """Read the field of a frame; an unset field is `None`."""
    if context is None or not context.traceparent:
        return None
    return parse_traceparent(context.traceparent, context.tracestate, context.request_id)


def to_proto(parent: TraceParent, request_id: str = "") -> TraceContext:
    """Write the field of a frame.

    Args:
        parent: of what the callee does.
        request_id: what the client was told, where the parent does not know it.
    """
    return TraceContext(
        traceparent=parent.to_header(),
        tracestate=parent.tracestate,
        request_id=request_id or parent.request_id,
    )
