"""The table of a start adds up, and says how fast bytes were read."""

from __future__ import annotations

import logging

from rhizome_engine.start_times import StartTimes


def test_the_stages_and_their_shares_add_up(caplog):
    now = 100.0
    times = StartTimes(2.0, clock=lambda: now)
    now += 1.5
    times.done("weights", 3 * 2**30)
    now += 0.5
    times.done("first steps")
    with caplog.at_level(logging.INFO):
        times.log(logging.getLogger("rhizome_engine.test"))
    assert [record.getMessage() for record in caplog.records] == [
        "start: imports          2.00 s   50 %",
        "start: weights          1.50 s   38 %  3.00 GiB at 2.00 GiB/s",
        "start: first steps      0.50 s   12 %",
        "start: ready after      4.00 s  100 %",
    ]


def test_without_a_process_there_is_nothing_before():
    now = 0.0
    times = StartTimes(clock=lambda: now)
    now += 1.0
    times.done("config")
    assert [(stage.name, stage.seconds) for stage in times.stages] == [("config", 1.0)]
