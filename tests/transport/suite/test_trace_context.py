"""The caller's span is known at the other end."""

from __future__ import annotations

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome_testing.engine_ways import DIRECT, ask


async def test_trace_context_arrives_as_sent(wired):
    trace = TraceContext(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="vendor=1")
    [event async for event in wired.client.generate(ask("count-6"), trace=trace)]
    arrived = wired.core.script.submits[0].trace
    if wired.way in DIRECT:
        assert arrived == trace
    else:  # a proxy may put a span of its own between
        assert arrived.traceparent.split("-")[1] == "a" * 32
        assert arrived.tracestate == "vendor=1"
