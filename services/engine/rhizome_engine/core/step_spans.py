"""A span for each step of the engine, with links to the sampled requests in it (`--trace-steps`).

A step belongs to many requests, and so to no trace of theirs: it is a trace of its own, whose root sampler
decides on it, and each link leads to the span that called the engine for a request.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Final

from rhizome_engine.scheduler.request import Request
from rhizome_engine.scheduler.step_plan import StepPlan
from rhizome_telemetry import semconv
from rhizome_telemetry.propagation import TraceParent
from rhizome_telemetry.tracing import start_span

MAX_LINKS: Final = 32
"""A batch may have hundreds of rows."""


def record_step(plan: StepPlan, began: float, read: float) -> None:
    """Record a step that was read just now, where a request in it is sampled.

    Args:
        plan: the step.
        began: when it began to be computed, on the clock of `time.monotonic`.
        read: when its tokens were read.
    """
    links = list(itertools.islice(_sampled(_rows(plan)), MAX_LINKS))
    if not links:
        return
    end_ns = time.time_ns() - round((time.monotonic() - read) * 1e9)
    start_ns = end_ns - round((read - began) * 1e9)
    span = start_span(semconv.SPAN_STEP, start_time_ns=start_ns, links=links)
    if span.recording:
        span.set_attributes(
            {
                semconv.STEP_DECODES: len(plan.decode),
                semconv.STEP_PREFILLS: len(plan.chunks),
                semconv.STEP_PREFILL_TOKENS: sum(chunk.num_tokens for chunk in plan.chunks),
                semconv.STEP_SAMPLED_TOKENS: len(plan.sampled),
            }
        )
    span.end("ok", end_ns)


def _rows(plan: StepPlan) -> Iterable[Request]:
    """Whom the step computes for: prompts first, which say more of how long it took."""
    return itertools.chain((chunk.request for chunk in plan.chunks), plan.decode)


def _sampled(requests: Iterable[Request]) -> Iterable[TraceParent]:
    for request in requests:
        trace = request.trace
        if isinstance(trace, TraceParent) and trace.sampled:
            yield trace
