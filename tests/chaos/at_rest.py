"""What must hold once nobody asks anything: by the counters of every process, whatever happened before."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tests.chaos.asking import Asked, End, ends
from tests.chaos.stack import Held, WholeStack, eventually

from rhizome.engine.v1.load_pb2 import Load
from rhizome_testing.otlp_sink import SunkSpan

FILES_SLACK = 12
"""Connections for checks, events and spans come and go."""
TASKS_SLACK = 6
RSS_SLACK = 48 << 20
"""Heaps that grow once and stay so; what leaks per request shows over thousands of them."""
_PASSED = {
    End.ANSWER: {"rhizome-gateway", "rhizome-proxy", "rhizome-engine"},
    End.CANCEL: {"rhizome-gateway"},  # maybe it got no further
}
EXPORTED_S = 0.6
"""Spans leave their process within so many seconds; what ended later may be lost with it."""


@dataclass(frozen=True)
class Outage:
    """A time in which something was killed.

    Attributes:
        what: the name of the process.
        began_s: on the monotonic clock.
        ended_s: when it served again.
    """

    what: str
    began_s: float
    ended_s: float

    def touches(self, one: Asked, margin_s: float = 0.0) -> bool:
        """Whether a request lived then."""
        return one.began_s < self.ended_s and self.began_s < one.ended_s + margin_s


def assert_one_end_each(sent: int, asked: list[Asked], outages: Iterable[Outage] = ()) -> None:
    """Every request got exactly one end, and only a gateway that was killed left anybody without a word."""
    assert sent == len(asked), f"{sent} were sent, {len(asked)} ended"
    bad = [one for one in asked if one.end in (End.WRONG, End.HUNG)]
    assert not bad, f"{ends(asked)}: {bad[:5]}"
    of_gateway = [one for one in outages if one.what == "gateway"]
    lost = [one for one in asked if one.end is End.LOST and not any(out.touches(one) for out in of_gateway)]
    assert not lost, f"{ends(asked)}: without a word {lost[:5]}"
    mute = [one for one in asked if one.end is End.ERROR and not one.detail]
    assert not mute, mute[:5]


def assert_engines_free(stack: WholeStack) -> None:
    """All pages are free or cached, nobody runs or waits, and every accepted request ended in one way."""
    for index in range(len(stack.engines)):
        eventually(lambda index=index: _at_rest(stack.load(index)), lambda index=index: stack.load(index))  # type: ignore[misc]
        load = stack.load(index)
        assert load is not None
        totals = load.totals
        ended = totals.completed + totals.aborted + totals.failed + totals.expired + totals.invalid
        assert totals.received == ended, f"engine {index}: {totals}"
    eventually(lambda: stack.in_flight() == 0, stack.in_flight)


def _at_rest(load: Load | None) -> bool:
    if load is None or load.running_requests or load.waiting_requests or load.kv_pages_in_use:
        return False
    return load.kv_pages_cached <= load.kv_pages_total


def assert_nothing_leaked(
    stack: WholeStack, before: Mapping[str, Held], *, rss_slack: int = RSS_SLACK
) -> None:
    """Processes that are the same as before hold no more files, tasks, threads or memory than before."""
    found: list[str] = []

    def same() -> bool:
        found[:] = grown(before, stack.held(), rss_slack)
        return not found

    eventually(same, lambda: found)


def grown(before: Mapping[str, Held], now: Mapping[str, Held], rss_slack: int = RSS_SLACK) -> list[str]:
    """What grew, in words."""
    found = []
    for name, old in before.items():
        new = now[name]
        if new.pid != old.pid:
            continue
        if new.files > old.files + FILES_SLACK:
            found.append(f"{name} has {new.files} open files, {old.files} before")
        if _tasks(new) > _tasks(old) + TASKS_SLACK:
            found.append(f"{name} has the tasks {dict(new.tasks)}, before {dict(old.tasks)}")
        if new.threads > old.threads + TASKS_SLACK:
            found.append(f"{name} has {new.threads} threads, {old.threads} before")
        if new.rss > old.rss + rss_slack:
            found.append(f"{name} has {new.rss >> 20} MiB, {old.rss >> 20} MiB before")
    return found


def _tasks(held: Held) -> int:
    """Without those that gRPC's server keeps for itself, one for each of its methods."""
    return sum(count for name, count in held.tasks.items() if not name.startswith("AioServer."))


def assert_traces_whole(stack: WholeStack, asked: Iterable[Asked], outages: Iterable[Outage] = ()) -> int:
    """The spans of each request that no killed process could take along form one tree; how many did."""
    killed = list(outages)
    whole = [
        one
        for one in asked
        if one.trace_id and one.end in (End.ANSWER, End.CANCEL)
        if not any(out.touches(one, EXPORTED_S) for out in killed)
    ]
    wanted = {one.trace_id: one for one in whole}
    problems: dict[str, str] = {}

    def complete() -> bool:
        traces: dict[str, list[SunkSpan]] = {trace_id: [] for trace_id in wanted}
        for span in stack.sink.spans:
            if span.trace_id in traces:
                traces[span.trace_id].append(span)
        problems.clear()
        for trace_id, spans in traces.items():
            if problem := _tree_problem(wanted[trace_id], spans):
                problems[trace_id] = problem
        return not problems

    eventually(complete, lambda: list(problems.items())[:3], timeout_s=15)
    return len(whole)


def _tree_problem(one: Asked, spans: list[SunkSpan]) -> str:
    """Why these are no tree with one root that knows its caller; empty when they are."""
    ids = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_span_id == one.span_id]
    strays = [span for span in spans if span.parent_span_id not in ids and span not in roots]
    services = {span.service for span in spans}
    if len(roots) != 1 or strays or len(ids) != len(spans) or not _PASSED[one.end] <= services:
        names = [f"{span.service}: {span.name}" for span in spans]
        return f"{one.kind} {one.end.value}: {len(roots)} roots, {len(strays)} strays among {names}"
    return ""


def now_s() -> float:
    """The monotonic clock, as requests and outages are dated."""
    return time.monotonic()
