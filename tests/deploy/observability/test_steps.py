"""Spans of the engine's steps, from a real stack that traces them."""

from __future__ import annotations

import secrets

from tests.deploy.observability.conftest import Watched

from rhizome_testing.otlp_sink import OtlpSink, SunkSpan

STEP = "rhizome.engine.step"


def test_steps_are_linked_to_the_requests_in_them(watched: Watched, spans: OtlpSink) -> None:
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    answer = watched.chat("Count from 1 to 9", headers=headers, max_tokens=16, ignore_eos=True)
    assert answer.json()["usage"]["completion_tokens"] == 16

    def steps(found: list[SunkSpan]) -> list[SunkSpan]:
        return [one for one in found if one.name == STEP and any(trace == trace_id for trace, _ in one.links)]

    found = steps(spans.wait_for(lambda all_spans: len(steps(all_spans)) >= 16))
    assert all(one.trace_id != trace_id and not one.parent_span_id for one in found), "traces of their own"
    assert all(one.service == "rhizome-engine" and one.start_ns <= one.end_ns for one in found)

    def is_call(one: SunkSpan) -> bool:
        return (one.service, one.kind) == ("rhizome-proxy", "CLIENT")

    of_trace = spans.wait_for(lambda seen: any(map(is_call, seen)), trace_id=trace_id)
    proxy_calls = {one.span_id for one in of_trace if is_call(one)}
    assert {span_id for one in found for trace, span_id in one.links if trace == trace_id} <= proxy_calls
    first = min(found, key=lambda one: one.start_ns)
    assert (
        first.attributes["rhizome.step.prefill_tokens"] and not first.attributes["rhizome.step.decode_rows"]
    )
    assert sum(int(str(one.attributes["rhizome.step.sampled_tokens"])) for one in found) >= 16


def test_a_request_that_is_not_sampled_is_in_no_link(watched: Watched, spans: OtlpSink) -> None:
    trace_id, sampled = secrets.token_hex(16), secrets.token_hex(16)
    unsampled = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-00"}
    assert watched.chat("Hello", headers=unsampled).status_code == 200
    assert (
        watched.chat("Hello", headers={"traceparent": f"00-{sampled}-{secrets.token_hex(8)}-01"}).status_code
        == 200
    )
    spans.wait_for(lambda found: any(trace == sampled for one in found for trace, _ in one.links))
    linked = {trace for one in spans.spans for trace, _ in one.links}
    assert trace_id not in linked and not spans.trace(trace_id)
