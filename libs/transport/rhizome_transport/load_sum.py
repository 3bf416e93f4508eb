"""The load of several engines as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from rhizome.engine.v1.load_pb2 import Load, RequestTotals

_SUMMED: Final = (
    "running_requests",
    "waiting_requests",
    "waiting_tokens",
    "kv_pages_total",
    "kv_pages_in_use",
    "kv_pages_cached",
    "host_pages_total",
    "host_pages_cached",
    "generated_tokens_per_second",
)
_SUMMED_TIMES: Final = ("queue_time", "prefill_time", "decode_time")


def sum_loads(loads: Sequence[Load]) -> Load:
    """Add up reports.

    A field is set only where every engine reports it, because a sum that leaves one out looks like spare
    room. `page_size` is set where it is the same everywhere; means, names and sequence numbers are left out.
    """
    total = Load()
    if not loads:
        return total
    for field in _SUMMED:
        if all(load.HasField(field) for load in loads):
            setattr(total, field, sum(getattr(load, field) for load in loads))
    if all(load.HasField("page_size") for load in loads) and len({load.page_size for load in loads}) == 1:
        total.page_size = loads[0].page_size
    if all(load.HasField("totals") for load in loads):
        total.totals.CopyFrom(_sum_totals([load.totals for load in loads]))
    return total


def _sum_totals(totals: list[RequestTotals]) -> RequestTotals:
    summed = RequestTotals()
    for counter in RequestTotals.DESCRIPTOR.fields:
        if counter.message_type is None:
            setattr(summed, counter.name, sum(getattr(one, counter.name) for one in totals))
    for time in _SUMMED_TIMES:
        if all(one.HasField(time) for one in totals):
            getattr(summed, time).CopyFrom(_sum_durations(getattr(one, time) for one in totals))
    return summed


def _sum_durations(durations: Iterable[Duration]) -> Duration:
    summed = Duration()
    summed.FromNanoseconds(sum(duration.ToNanoseconds() for duration in durations))
    return summed
