"""Spans of steps: with the links that fit, and none where nobody in the step is sampled."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from rhizome_engine.core.step_spans import MAX_LINKS, record_step
from rhizome_engine.core.step_watch import StepWatch
from rhizome_engine.scheduler.request import Request
from rhizome_engine.scheduler.step_plan import Chunk, StepPlan
from rhizome_telemetry.propagation import TraceParent
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing
from rhizome_testing.otlp_sink import OtlpSink

SAMPLED, UNSAMPLED = 3, 2


@pytest.fixture
def sink(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpSink]:
    with OtlpSink() as one:
        for name, value in one.environment.items():
            monkeypatch.setenv(name, value)
        configure_tracing("rhizome-test")
        yield one
        shutdown_tracing()


def request(number: int, flags: int) -> Request:
    return Request(f"r{number}", [1, 2], trace=TraceParent(f"{number:032x}", f"{number:016x}", flags))


def plan(decode: list[Request], chunks: list[Chunk]) -> StepPlan:
    sampled = [*decode, *(chunk.request for chunk in chunks if chunk.samples)]
    none = np.zeros(len(decode), np.int64)
    places = np.zeros(len(sampled), np.int64)
    return StepPlan(decode, none, none, chunks, sampled, places, places, places)


def test_a_step_has_its_times_its_rows_and_its_links(sink: OtlpSink) -> None:
    decode = [request(1, SAMPLED), request(2, UNSAMPLED), Request("untraced", [1])]
    chunk = Chunk(request(3, SAMPLED), 0, 7, True, 0)
    now, wall = time.monotonic(), time.time_ns()
    record_step(plan(decode, [chunk]), now - 0.5, now - 0.25)
    (span,) = sink.wait_for(lambda spans: bool(spans))
    assert span.name == "rhizome.engine.step" and not span.parent_span_id
    assert span.end_ns - span.start_ns == pytest.approx(0.25e9, rel=1e-3)
    assert span.end_ns == pytest.approx(wall - 0.25e9, abs=0.1e9)
    assert span.links == ((f"{3:032x}", f"{3:016x}"), (f"{1:032x}", f"{1:016x}")), "prompts first"
    assert span.attributes == {
        "rhizome.step.decode_rows": 3,
        "rhizome.step.prefill_rows": 1,
        "rhizome.step.prefill_tokens": 7,
        "rhizome.step.sampled_tokens": 4,
    }


def test_no_step_has_more_links_than_fit(sink: OtlpSink) -> None:
    record_step(plan([request(number, SAMPLED) for number in range(1, 101)], []), 0.0, 1.0)
    (span,) = sink.wait_for(lambda spans: bool(spans))
    assert len(span.links) == MAX_LINKS == 32


def test_a_step_without_a_sampled_request_is_not_recorded(sink: OtlpSink) -> None:
    record_step(plan([request(1, UNSAMPLED)], []), 0.0, 1.0)
    record_step(plan([request(2, SAMPLED)], []), 0.0, 1.0)
    (span,) = sink.wait_for(lambda spans: bool(spans))
    assert span.links == ((f"{2:032x}", f"{2:016x}"),)


def test_a_core_tells_each_step_to_its_listener(harness) -> None:
    h = harness()
    told: list[tuple[StepPlan, float, float]] = []
    assert isinstance(h.core.steps, StepWatch)
    h.core.steps.listener = lambda *step: told.append(step)
    h.generate("a", [5, 6, 7], 4)
    assert len(told) == h.core.load().totals.steps == 4
    assert all(began <= read for _, began, read in told)
    assert sum(h.core.token_gaps.message().counts) == 3
