"""How many requests a backend should have by its reports."""

from __future__ import annotations

from rhizome.engine.v1.load_pb2 import Load
from rhizome_routing.admission.reported import ReportedLimit
from rhizome_routing.candidate import LoadReport


class Reports:
    """Reports every quarter of a second."""

    def __init__(self, queue_target: int = 2) -> None:
        self.limit = ReportedLimit(queue_target)
        self.now = 100.0

    def tell(self, running: int, waiting: int, own: int | None = None) -> int:
        """The limit then; all requests are ours unless it is said."""
        self.now += 0.25
        load = Load(running_requests=running, waiting_requests=waiting)
        self.limit.read(LoadReport(load, running + waiting if own is None else own, self.now))
        assert self.limit.limit is not None
        return self.limit.limit


def test_nobody_should_wait_where_answers_are_long():
    reports = Reports()
    reports.tell(16, 4)
    assert [reports.tell(16, 4), reports.tell(16, 1)] == [16, 16]


def test_as_many_may_wait_as_end_until_the_next_one_comes():
    reports = Reports()
    reports.tell(16, 4)
    for ended, spare in ((4, 0), (6, 1), (11, 2), (50, 2)):
        for _ in range(ended):
            reports.limit.ended()
        assert reports.tell(16, 4) == 16 + spare


def test_more_is_tried_in_steps_that_double_until_some_wait():
    reports, limits = Reports(), [2]
    reports.tell(2, 2)
    for _ in range(6):
        limits.append(reports.tell(limits[-1], 0))
    assert limits == [2, 3, 5, 9, 17, 33, 65]
    assert reports.tell(64, 1) == 64
    assert reports.tell(64, 0) == 64 + 2  # one of 32


def test_room_that_is_not_used_is_not_taken_for_more():
    reports = Reports()
    reports.tell(16, 4)
    assert [reports.tell(5, 0) for _ in range(10)] == [17] * 10


def test_who_was_sent_just_now_waits_for_a_step_and_not_for_a_slot():
    reports = Reports()
    reports.tell(16, 4)
    reports.limit.sent(reports.now + 0.2)
    assert reports.tell(12, 2) == 16  # neither less nor more
    reports.limit.sent(reports.now + 0.1)
    assert reports.tell(12, 2) == 13


def test_one_that_waits_for_ever_does_not_drive_the_others_out():
    reports = Reports()
    reports.tell(16, 4)
    assert [reports.tell(15, 1) for _ in range(20)] == [16] * 20
    assert reports.tell(10, 6) == 11


def test_small_steps_up_do_not_add_up_to_a_flood():
    reports = Reports()
    reports.tell(16, 4)
    for own in range(17, 40):
        assert reports.tell(own, 0) <= 2 * own


def test_where_others_have_requests_ours_wait_beside_them():
    reports = Reports()
    assert reports.tell(16, 6, own=0) == 2
    assert reports.tell(16, 6, own=2) == 2 - 0 + 2
    assert reports.tell(16, 6, own=11) == 11 - 3 + 2


def test_the_last_one_is_always_let_in():
    reports = Reports()
    reports.tell(0, 2)
    assert reports.tell(0, 2) == 1
