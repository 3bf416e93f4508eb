"""The load of several engines as one."""

from __future__ import annotations

from rhizome.engine.v1.load_pb2 import Load, RequestTotals
from rhizome_transport.load_sum import sum_loads

KNOWN = Load(running_requests=2, kv_pages_total=10, page_size=16, totals=RequestTotals(received=4))


def test_a_field_that_one_engine_does_not_report_is_absent_and_not_smaller():
    total = sum_loads([KNOWN, Load(running_requests=1, page_size=32)])
    assert total.running_requests == 3
    for field in ("kv_pages_total", "page_size", "totals", "waiting_requests"):
        assert not total.HasField(field), field
    assert not sum_loads([KNOWN, Load()]).HasField("running_requests")


def test_times_are_summed_like_counts_and_absent_where_one_engine_knows_none():
    def report(nanoseconds: int) -> Load:
        load = Load(totals=RequestTotals(steps=2))
        load.totals.queue_time.FromNanoseconds(nanoseconds)
        return load

    loads = [report(1_600_000_000) for _ in range(2)]
    summed = sum_loads(loads).totals
    assert (summed.steps, summed.queue_time.ToNanoseconds()) == (4, 3_200_000_000)
    summed = sum_loads([*loads, Load(totals=RequestTotals(steps=1))]).totals
    assert summed.steps == 5
    assert not summed.HasField("queue_time")
    assert sum_loads([KNOWN, KNOWN]).totals.received == 8


def test_without_engines_nothing_is_known():
    assert sum_loads([]) == Load()
