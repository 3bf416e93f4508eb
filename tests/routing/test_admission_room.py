"""How many requests each backend should get."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import pytest

from rhizome.engine.v1.load_pb2 import Load
from rhizome_routing.admission import (
    Admissions,
    AdmissionSettings,
    Fleet,
    QueueTimeout,
    Room,
    RoomRules,
    Sent,
    TenantOverloaded,
)
from rhizome_routing.candidate import LoadReport


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Server:
    """A backend with a room; requests there are answered at once unless they wait."""

    def __init__(self, clock: Clock, rules: RoomRules | None = None, room: Room | None = None) -> None:
        self.name, self.weight, self.priority, self.busy, self.load_max_age_s = "server", 1.0, 0, False, 2.0
        self.clock = clock
        self.room = room or Room(rules or RoomRules(), clock)
        self.report: LoadReport | None = None
        self.foreign: int | None = None

    @property
    def in_flight(self) -> int:
        return self.room.in_flight

    def foreign_requests(self) -> int | None:
        return self.foreign

    @property
    def free(self) -> int:
        return self.room.free(self)

    def fill(self, running: int, waiting: int = 0) -> list[Sent]:
        sent = [self.room.sent(100) for _ in range(running + waiting)]
        for one in sent[:running]:
            one.answered()
        return sent

    def tell(self, running: int, waiting: int, own: int | None = None) -> None:
        load = Load(running_requests=running, waiting_requests=waiting)
        self.report = LoadReport(load, self.in_flight if own is None else own, self.clock())


@pytest.fixture(name="clock")
def _clock() -> Clock:
    return Clock()


def test_a_backend_that_nothing_is_known_of_is_not_held_back(clock: Clock):
    server = Server(clock)
    server.fill(running=0, waiting=1000)
    assert server.free == 24


def test_a_configured_limit_counts_with_the_weight(clock: Clock):
    server = Server(clock, RoomRules(max_in_flight=8))
    server.fill(3)
    assert server.free == 5
    server.weight = 0.5
    assert server.free == 1
    server.tell(running=3, waiting=50)
    assert server.free == 1


def test_a_queue_at_the_backend_shows_what_fits(clock: Clock):
    server = Server(clock)
    sent = server.fill(running=64, waiting=10)
    server.tell(running=64, waiting=10)
    assert server.free == 66 - 74
    for one in sent[:9]:
        one.left()
    assert server.free == 1  # 64 run again and one waits


def test_room_comes_back_with_each_request_that_ends_between_two_reports(clock: Clock):
    server = Server(clock)
    sent = server.fill(running=64, waiting=2)
    server.tell(running=64, waiting=2)
    assert server.free == 0
    sent[0].left()
    assert server.free == 1
    server.room.sent(100)
    assert server.free == 0


def test_what_fits_is_remembered_while_the_backend_is_quiet(clock: Clock):
    server = Server(clock)
    sent = server.fill(running=64, waiting=2)
    server.tell(running=64, waiting=2)
    assert server.free == 0
    for one in sent:
        one.left()
    server.tell(running=0, waiting=0)
    assert 64 <= server.free <= 70


def test_other_clients_requests_take_their_part_of_the_queue(clock: Clock):
    server = Server(clock)
    server.fill(running=32, waiting=5)
    server.tell(running=64, waiting=10)  # half of all are somebody else's
    assert server.free == 37 - 5 + 2 - 37


def test_without_a_queue_there_the_limit_grows_fast_until_one_was_seen(clock: Clock):
    server, most = Server(clock), 0
    while most < 500:
        server.tell(running=server.in_flight, waiting=0)
        assert server.free >= 32
        server.fill(running=server.free)
        assert server.in_flight > 1.4 * most
        most = server.in_flight


def test_always_has_room_for_a_few_whose_prompts_are_read(clock: Clock):
    server = Server(clock)
    server.fill(running=4, waiting=4)
    server.tell(running=1, waiting=7)
    assert server.free <= 0
    server = Server(clock)
    server.fill(running=12)
    server.tell(running=12, waiting=6, own=8)  # those have begun since then
    assert server.free == 2


def test_who_waits_for_an_endless_prompt_waits_no_longer_than_it_may(clock: Clock):
    server = Server(clock, RoomRules(overdue_s=2.0))
    server.room._times.limit = 1
    endless = server.room.sent(100_000)
    assert server.free == 0
    clock.now += 1.9
    assert server.free == 0
    clock.now += 0.2
    assert server.free == 1
    quick = server.room.sent(10)
    assert server.free == 0  # one at a time beside it
    quick.answered()
    quick.left()
    assert server.free == 1
    for end in (endless.answered, endless.left, endless.left):
        end()
        assert server.free == 1
    assert (server.room.awaited, server.room._overdue) == (0, 0)
    leaving = server.room.sent(100_000)
    clock.now += 3
    assert server.free == 1
    leaving.left()
    assert (server.room.awaited, server.room._overdue, server.free) == (0, 0, 1)


def test_what_is_remembered_of_requests_goes_with_them(clock: Clock):
    room = Server(clock).room
    for _ in range(10_000):
        one = room.sent(10)
        one.answered()
        one.left()
    assert len(room._sent) < 3


def test_answers_that_are_not_streamed_say_nothing_about_a_wait(clock: Clock):
    server = Server(clock)
    for _ in range(20):
        server.room.sent(100, streamed=False).answered()
    assert server.room.awaited == 0
    assert server.room._times.limit == RoomRules().unknown_limit


def test_whole_answers_do_not_look_answered_while_they_wait(clock: Clock):
    server = Server(clock)
    sent = [server.room.sent(100, streamed=False) for _ in range(10)]
    server.tell(running=4, waiting=6)
    assert server.free == 4 + 2 - 10
    for one in sent:
        one.left()
        one.left()
    assert (server.room.in_flight, server.room.unanswered, server.room.awaited) == (0, 0, 0)


def test_a_backend_that_was_full_and_falls_silent_is_not_flooded(clock: Clock):
    server = Server(clock)
    server.fill(running=64, waiting=2)
    server.tell(running=64, waiting=2)
    clock.now += 60
    assert server.free == 0


@pytest.mark.parametrize("missing", ["waiting_requests", "both"])
def test_a_report_without_a_queue_means_unknown(clock: Clock, missing: str):
    server = Server(clock)
    load = Load() if missing == "both" else Load(running_requests=3)
    server.fill(3)
    server.report = LoadReport(load, 3, clock())
    assert server.free == 1021


def test_a_busy_backend_has_no_room(clock: Clock):
    server = Server(clock)
    server.busy = True
    assert server.free == 0


def test_the_threshold_of_running_requests_bounds_a_burst(clock: Clock):
    server = Server(clock, RoomRules(max_running=8))
    assert server.free == 9  # with nine it is over the threshold
    server.fill(4)
    server.foreign = 3
    server.tell(running=7, waiting=0)
    assert server.free == 2


@pytest.mark.parametrize("wrong", ["max_in_flight", "queue_target", "unknown_limit"])
def test_a_limit_of_nothing_is_an_error(wrong: str):
    with pytest.raises(ValueError, match="at least 1"):
        RoomRules(**{wrong: 0})


def make_fleet(clock: Clock, servers: int, **rules: int) -> SimpleNamespace:
    pool: list[Server] = []
    fleet = Fleet(lambda group: [one for one in pool if group in ("", one.name)], clock)
    for number in range(servers):
        pool.append(Server(clock, room=fleet.new_room(RoomRules(**rules))))
        pool[-1].name = f"model {number}"
    return SimpleNamespace(fleet=fleet, pool=pool, admissions=Admissions(AdmissionSettings(), fleet, clock))


def test_a_burst_fills_every_backend_and_no_more(clock: Clock):
    one = make_fleet(clock, 3, max_in_flight=4)
    queue = one.admissions.of("")
    tickets = [queue.offer("a") for _ in range(20)]
    assert sum(ticket.admitted for ticket in tickets) == 12
    for ticket in tickets[:12]:  # they find their backends later
        assert ticket.admitted
        min(one.pool, key=lambda server: server.in_flight).room.sent(1)
    one.admissions.pump()
    assert sum(ticket.admitted for ticket in tickets) == 12


def test_room_is_given_away_once_between_two_backends_of_a_request(clock: Clock):
    one = make_fleet(clock, 2, max_in_flight=1)
    queue = one.admissions.of("")
    first, second, third = (queue.offer("a") for _ in range(3))
    sent = [server.room.sent(1) for server in one.pool]
    sent[0].left()  # that backend is lost; the request looks for another one
    assert not third.admitted
    sent.append(one.pool[0].room.sent(1))
    first.release()
    assert not third.admitted  # the backend is not done with it yet
    sent[2].left()
    assert third.admitted
    second.release()


def test_a_group_without_backends_holds_nobody_back(clock: Clock):
    assert make_fleet(clock, 0).admissions.of("").offer("a").admitted


def test_a_group_does_not_wait_for_anothers_backends(clock: Clock):
    one = make_fleet(clock, 2, max_in_flight=1)
    held = one.admissions.of("model 0").offer("a")
    one.pool[0].room.sent(1)
    assert not one.admissions.of("model 0").offer("a").admitted
    assert one.admissions.of("model 1").offer("a").admitted
    assert one.admissions.waiting() == 1
    assert held.admitted


def test_groups_that_share_a_backend_take_turns(clock: Clock):
    one = make_fleet(clock, 1, max_in_flight=1)
    running, sent = one.admissions.of("").offer("a"), one.pool[0].room.sent(1)
    lines = {name: [one.admissions.of(name).offer("a") for _ in range(30)] for name in ("", "model 0")}
    for _ in range(20):
        sent.left()
        running.release()
        running = next(ticket for line in lines.values() for ticket in line if ticket.admitted)
        sent = one.pool[0].room.sent(1)
    left = [one.admissions.of(name).waiting() for name in lines]
    assert left == [20, 20]


def test_a_first_token_makes_room(clock: Clock):
    one = make_fleet(clock, 1)
    server = one.pool[0]
    server.fill(running=8)
    server.tell(running=8, waiting=2)
    queue = one.admissions.of("")
    first = queue.offer("a")
    sent = [server.room.sent(1) for _ in range(2)]
    waiting = queue.offer("a")
    assert (first.admitted, waiting.admitted) == (True, False)
    sent[0].answered()
    assert waiting.admitted


def test_many_groups_are_forgotten(clock: Clock):
    one = make_fleet(clock, 0)
    for number in range(5000):
        one.admissions.of(f"group {number}").offer("a").release()
    assert len(one.admissions._groups) <= 256
    assert one.admissions.counts.at_once == 5000


async def test_requests_that_come_go_and_are_cut_off_leave_nothing_behind():
    dice = random.Random(5)
    loop = asyncio.get_running_loop()
    pool: list[Server] = []
    fleet = Fleet(lambda group: pool, loop.time)
    admissions = Admissions(AdmissionSettings(tenant_requests=40), fleet, loop.time)
    pool.extend(Server(loop.time, room=fleet.new_room(RoomRules(max_in_flight=3))) for _ in range(3))
    most = 0

    async def request(number: int) -> None:
        nonlocal most
        group = f"model {number % 2}"
        ticket = admissions.of(group).offer(
            f"tenant {number % 7}", tokens=10, deadline_s=5.0 if number % 5 else 0.01
        )
        try:
            await ticket.wait()
            for _ in range(1 + number % 2):  # some try two backends
                room = max(pool, key=fleet.free).room
                sent = room.sent(10)
                most = max(most, *(server.in_flight for server in pool))
                try:
                    await asyncio.sleep(dice.uniform(0, 0.004))
                    sent.answered()
                    await asyncio.sleep(dice.uniform(0, 0.004))
                finally:
                    sent.left()
        finally:
            ticket.release(dice.randint(1, 50))

    tasks = []
    for number in range(600):
        tasks.append(asyncio.create_task(request(number)))
        if number % 3 == 0:
            loop.call_later(dice.uniform(0, 0.05), dice.choice(tasks).cancel)
        if number % 20 == 0:
            await asyncio.sleep(0.002)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(one) for one in ended} <= {
        type(None),
        asyncio.CancelledError,
        TenantOverloaded,
        QueueTimeout,
    }
    assert sum(one is None for one in ended) > 50
    assert most <= 3
    assert (fleet._admitted, fleet._placed, admissions.waiting()) == (0, 0, 0)
    assert [(server.room.in_flight, server.room.unanswered, server.room.awaited) for server in pool] == [
        (0, 0, 0)
    ] * 3
    counts = admissions.counts
    assert counts.offered == (
        counts.at_once + counts.queued + counts.refused + counts.expired + counts.cancelled
    )
