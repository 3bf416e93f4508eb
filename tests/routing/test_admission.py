"""The queue in front of the backends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_routing.admission import (
    Admission,
    AdmissionSettings,
    ClassRules,
    PriorityClass,
    QueueTimeout,
    SystemOverloaded,
    TenantOverloaded,
    Ticket,
)
from rhizome_routing.admission.fair_queue import REMEMBERED

HIGH, NORMAL, LOW = PriorityClass


class Slots:
    """Room for so many requests."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.open = 0

    def has_room(self, group: str) -> bool:
        return self.open < self.total

    def opened(self) -> None:
        self.open += 1

    def closed(self) -> None:
        self.open -= 1


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rules(max_waiting: int = 1000, max_wait_s: float = 60.0, low_share: float = 0.1) -> AdmissionSettings:
    return AdmissionSettings(
        classes={
            HIGH: ClassRules(max_waiting, max_wait_s),
            NORMAL: ClassRules(max_waiting, max_wait_s, 0.2),
            LOW: ClassRules(max_waiting, max_wait_s, low_share),
        },
        tenant_requests=max_waiting,
    )


def make(
    total: int = 1, given: AdmissionSettings | None = None, clock: Clock | None = None
) -> SimpleNamespace:
    slots, clock = Slots(total), clock or Clock()
    return SimpleNamespace(admission=Admission(given or rules(), slots, clock), slots=slots, clock=clock)


def counts_add_up(admission: Admission) -> bool:
    counts = admission.counts
    ended = counts.at_once + counts.queued + counts.refused + counts.expired + counts.cancelled
    return counts.offered == ended + admission.waiting()


def drain(one: SimpleNamespace, tickets: list[Ticket], rounds: int) -> list[Ticket]:
    """Release what is admitted, one after another; who was admitted in that time."""
    order, seen = [], {ticket for ticket in tickets if ticket.admitted}
    running = list(seen)
    for _ in range(rounds):
        if not running:
            break
        running.pop(0).release()
        fresh = [ticket for ticket in tickets if ticket.admitted and ticket not in seen]
        seen.update(fresh)
        running += fresh
        order += fresh
    return order


def test_admits_at_once_while_there_is_room():
    one = make(2)
    assert [one.admission.offer("a").admitted for _ in range(3)] == [True, True, False]


def test_nobody_overtakes_those_of_its_class_when_room_appears():
    one = make(1)
    first = one.admission.offer("a")
    waiting = one.admission.offer("b")
    one.slots.total = 2  # without a word to the queue
    late = one.admission.offer("c")
    assert (waiting.admitted, late.admitted) == (True, False)
    first.release()
    assert late.admitted


def test_a_tenant_is_served_in_order():
    one = make(1)
    tickets = [one.admission.offer("a", tokens=1 + n % 5) for n in range(20)]
    assert drain(one, tickets, 30) == tickets[1:]


def test_release_counts_once_in_any_order():
    one = make(1)
    ticket = one.admission.offer("a")
    ticket.release()
    ticket.release()
    ticket.cancel()
    assert one.slots.open == 0
    held, waiting = one.admission.offer("a"), one.admission.offer("a")
    waiting.release()
    held.release()
    waiting.cancel()
    assert (one.slots.open, one.admission.waiting()) == (0, 0)
    assert not waiting.admitted
    assert counts_add_up(one.admission)


async def test_wait_returns_when_there_is_room():
    one = make(1)
    held, waiting = one.admission.offer("a"), one.admission.offer("b")
    await held.wait()
    task = asyncio.create_task(waiting.wait())
    await asyncio.sleep(0)
    assert not task.done()
    one.clock.now += 2.0
    held.release()
    await task
    assert waiting.admitted
    assert waiting.waited_s == 2.0


async def test_a_cancelled_waiter_leaves_no_trace():
    one = make(1)
    held, gone, last = (one.admission.offer(name) for name in "abc")
    task = asyncio.create_task(gone.wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert one.admission.waiting() == 1
    held.release()
    assert last.admitted
    last.release()
    assert one.slots.open == 0
    assert one.admission._queues[NORMAL].flows == {}


async def test_who_is_cancelled_as_it_is_admitted_gives_the_place_back():
    one = make(1)
    held, gone, last = (one.admission.offer(name) for name in "abc")
    task = asyncio.create_task(gone.wait())
    await asyncio.sleep(0)
    held.release()
    assert gone.admitted
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert last.admitted
    assert one.slots.open == 1


async def test_wait_ends_when_somebody_else_gives_the_ticket_up():
    one = make(1)
    one.admission.offer("a")
    gone = one.admission.offer("b")
    task = asyncio.create_task(gone.wait())
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(asyncio.CancelledError):
        await gone.wait()


async def test_a_deadline_ends_the_wait():
    slots = Slots(0)
    admission = Admission(rules(), slots, asyncio.get_running_loop().time)
    ticket = admission.offer("a", deadline_s=0.01)
    with pytest.raises(QueueTimeout) as caught:
        await ticket.wait()
    assert caught.value.status == 503
    assert caught.value.retry_after_s >= 1
    ticket.release()
    assert (admission.waiting(), slots.open, admission.counts.expired) == (0, 0, 1)


def test_who_is_out_of_time_is_not_admitted_any_more():
    one = make(1)
    held = one.admission.offer("a")
    late, next_one = one.admission.offer("b", deadline_s=5.0), one.admission.offer("b")
    one.clock.now += 5.0
    held.release()
    assert (late.admitted, next_one.admitted) == (False, True)
    assert one.admission.counts.expired == 1
    assert counts_add_up(one.admission)


def test_a_class_bounds_the_deadline():
    one = make(1, rules(max_wait_s=10.0))
    one.admission.offer("a")
    assert one.admission.offer("b", deadline_s=500.0).expires_at == one.clock.now + 10.0


def test_higher_classes_go_first():
    one = make(1, rules(low_share=0.0))
    held = one.admission.offer("a")
    tickets = [one.admission.offer("a", priority, 1000) for priority in (LOW, HIGH, LOW, HIGH)]
    order = drain(one, [held, *tickets], 5)
    assert [ticket.priority for ticket in order] == [HIGH, HIGH, LOW, LOW]


@pytest.mark.parametrize(("size", "share"), [(100, 0.1), (1000, 0.1), (100, 0.3)])
def test_a_low_class_gets_its_share_under_an_endless_flood(size: int, share: float):
    one = make(1, rules(10_000, low_share=share))
    running = one.admission.offer("a", HIGH, 100)
    lows = [one.admission.offer("batch", LOW, size) for _ in range(20)]
    floods = [one.admission.offer("a", HIGH, 100) for _ in range(30)]
    served = Counter()
    for _ in range(2000):
        running.release()
        floods.append(one.admission.offer("a", HIGH, 100))
        running = next(ticket for ticket in lows + floods if ticket.admitted)
        (lows if running in lows else floods).remove(running)
        served[running.priority] += running.tokens
        if len(lows) < 20:
            lows.append(one.admission.offer("batch", LOW, size))
    assert served[LOW] / served.total() == pytest.approx(share, rel=0.1)


def test_tenants_share_by_tokens_and_not_by_requests():
    one = make(1)
    held = one.admission.offer("first")
    big = [one.admission.offer("big", tokens=1000) for _ in range(20)]
    small = [one.admission.offer("small", tokens=100) for _ in range(200)]
    order = drain(one, [held, *big, *small], 110)
    served = Counter()
    for ticket in order:
        served[ticket.tenant] += ticket.tokens
    assert abs(served["big"] - served["small"]) <= 1000


def test_a_newcomer_does_not_wait_for_anothers_backlog():
    one = make(1)
    held = one.admission.offer("heavy")
    backlog = [one.admission.offer("heavy", tokens=500) for _ in range(100)]
    held.release()
    light = one.admission.offer("light", tokens=500)
    backlog[0].release()
    assert light.admitted


def test_who_uses_more_than_it_said_pays_later():
    one = make(1)
    running, served = one.admission.offer("first"), Counter()
    liar = [one.admission.offer("liar", tokens=10) for _ in range(200)]
    honest = [one.admission.offer("honest", tokens=1000) for _ in range(200)]
    for _ in range(100):
        running.release(1000)
        running = next(ticket for ticket in liar + honest if ticket.admitted)
        served[running.tenant] += 1
    assert abs(served["liar"] - served["honest"]) <= 2


def test_who_said_too_much_gets_it_back():
    one = make(1)
    running, served = one.admission.offer("first"), Counter()
    modest = [one.admission.offer("modest", tokens=4000) for _ in range(200)]
    exact = [one.admission.offer("exact", tokens=100) for _ in range(200)]
    for _ in range(200):
        running.release(100)
        running = next(ticket for ticket in modest + exact if ticket.admitted)
        served[running.tenant] += 1
    assert served["modest"] == pytest.approx(100, abs=45)  # it paid in advance for what was running


def test_idle_time_is_not_saved():
    one = make(1)
    held = one.admission.offer("first")
    busy = [one.admission.offer("busy", tokens=100) for _ in range(100)]
    early = one.admission.offer("guest", tokens=100)
    drain(one, [held, *busy, early], 50)
    guest = [one.admission.offer("guest", tokens=100) for _ in range(40)]
    order = drain(one, [*busy, *guest], 41)
    served = Counter(ticket.tenant for ticket in order)
    assert abs(served["guest"] - served["busy"]) <= 1


def test_a_tenant_with_too_much_waiting_is_told_when_to_come_back():
    one = make(1, AdmissionSettings(tenant_requests=50))
    running = one.admission.offer("a", tokens=100)
    tickets = [one.admission.offer("a", tokens=100) for _ in range(50)]
    other = [one.admission.offer("b", tokens=100) for _ in range(40)]
    for _ in range(20):  # 10 of each within 10 s
        one.clock.now += 0.5
        running.release()
        running = next(ticket for ticket in tickets + other if ticket.admitted)
    tickets += [one.admission.offer("a", tokens=100) for _ in range(10)]
    with pytest.raises(TenantOverloaded) as caught:
        one.admission.offer("a", tokens=100)
    assert caught.value.status == 429
    assert caught.value.retry_after_s == pytest.approx(25, rel=0.1)  # half of 50 at 1/s
    assert not one.admission.offer("b").admitted
    assert counts_add_up(one.admission)


def test_a_tenant_is_bounded_by_tokens_too_but_may_always_send_one():
    one = make(1, AdmissionSettings(tenant_tokens=1000))
    one.admission.offer("a")
    one.admission.offer("a", tokens=5000)
    with pytest.raises(TenantOverloaded):
        one.admission.offer("a", tokens=1)


def test_floods_leave_places_for_those_who_have_nothing_waiting():
    one = make(1, rules(max_waiting=64))
    one.admission.offer("first")
    held = Counter()
    for _ in range(100):
        for name in ("flood 1", "flood 2", "flood 3"):
            try:
                one.admission.offer(name)
                held[name] += 1
            except TenantOverloaded:
                pass
    assert held.total() < 64
    assert max(held.values()) - min(held.values()) <= 1
    one.admission.offer("light")


def test_a_full_system_says_so():
    one = make(1, rules(max_waiting=10))
    one.admission.offer("first")
    for number in range(10):
        one.admission.offer(f"tenant {number}")
    with pytest.raises(SystemOverloaded) as caught:
        one.admission.offer("one more")
    assert caught.value.status == 503
    assert 1 <= caught.value.retry_after_s <= 120
    one.admission.offer("one more", HIGH)  # a class has bounds of its own


@pytest.mark.parametrize("name", ["high", "NORMAL", " low", "batch", ""])
def test_classes_have_names(name: str):
    assert PriorityClass.of(name) in PriorityClass


def test_an_unknown_class_is_an_error():
    with pytest.raises(ValueError, match="high, normal, low, batch"):
        PriorityClass.of("urgent")


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": {HIGH: ClassRules(1, 1.0)}},
        {"classes": dict.fromkeys(PriorityClass, ClassRules(1, 1.0, 0.4))},
        {"classes": dict.fromkeys(PriorityClass, ClassRules(1, 0.0))},
        {"tenant_requests": 0},
    ],
)
def test_wrong_settings_are_errors(wrong: dict[str, object]):
    with pytest.raises(ValueError, match=r"classes|positive"):
        AdmissionSettings(**wrong)


def test_a_hundred_thousand_tenants_cost_no_memory_and_little_time():
    one = make(4)
    keep = [one.admission.offer(f"keeper {n}", tokens=10) for n in range(20)]  # the queue is never empty
    running: list[Ticket] = [ticket for ticket in keep if ticket.admitted]
    waiting = [ticket for ticket in keep if not ticket.admitted]
    began = time.process_time()
    for number in range(100_000):
        waiting.append(one.admission.offer(f"tenant {number}", tokens=10))
        running.pop(0).release(12)
        fresh = [ticket for ticket in waiting if ticket.admitted]
        waiting = [ticket for ticket in waiting if not ticket.admitted]
        running += fresh
    assert time.process_time() - began < 30
    queue = one.admission._queues[NORMAL]
    assert len(queue.flows) <= REMEMBERED + len(queue)
    assert len(queue._heap) <= 2 * len(queue.flows) + 65
    assert counts_add_up(one.admission)


offers = st.tuples(
    st.just("offer"), st.sampled_from("abcd"), st.sampled_from(list(PriorityClass)), st.integers(1, 2000)
)
ends = st.tuples(st.sampled_from(["release", "cancel"]), st.integers(0, 50), st.integers(0, 4000))
steps = st.lists(st.one_of(offers, offers, ends, st.tuples(st.just("later"), st.floats(0, 20))), max_size=120)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(room=st.integers(1, 4), steps=steps)
def test_whatever_happens_nobody_is_lost_and_no_room_is_wasted(room: int, steps: list[tuple]):
    one = make(room, rules(max_waiting=20))
    admission, tickets = one.admission, []
    order: dict[tuple[str, PriorityClass], list[int]] = defaultdict(list)
    seen: set[int] = set()
    for step in steps:
        if step[0] == "offer":
            try:
                tickets.append(admission.offer(step[1], step[2], step[3], deadline_s=30.0))
            except (TenantOverloaded, SystemOverloaded):
                assert admission.waiting(step[2])
        elif step[0] == "later":
            one.clock.now += step[1]
        elif tickets:
            ticket = tickets[step[1] % len(tickets)]
            if step[0] == "release":
                ticket.release(step[2])
            else:
                ticket.cancel()
        for number, ticket in enumerate(tickets):
            if ticket.admitted and number not in seen:
                seen.add(number)
                order[ticket.tenant, ticket.priority].append(number)
        assert one.slots.open == sum(ticket.admitted for ticket in tickets) <= room
        assert not admission.waiting() or one.slots.open == room
        assert counts_add_up(admission)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    for ticket in tickets:
        ticket.cancel()
    assert (one.slots.open, admission.waiting()) == (0, 0)
    assert not any(queue.flows or queue._heap or queue.tokens for queue in admission._queues.values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    room=st.integers(1, 4),
    sizes=st.lists(st.lists(st.integers(1, 1000), min_size=30, max_size=60), min_size=2, max_size=5),
    errors=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=20),
)
def test_no_tenant_gets_ahead_of_another_that_waits(room: int, sizes: list[list[int]], errors: list[float]):
    """Real use of any two that wait all the time differs by no more than a request and what runs."""
    one = make(room)
    held = [one.admission.offer("first") for _ in range(room)]
    tickets = [
        one.admission.offer(str(tenant), tokens=size) for tenant, line in enumerate(sizes) for size in line
    ]
    used, left = Counter({str(tenant): 0 for tenant in range(len(sizes))}), Counter(t.tenant for t in tickets)
    running, turn = list(held), 0
    pending = set(tickets)
    while all(left[str(tenant)] for tenant in range(len(sizes))):
        ended = running.pop(0)
        real = max(1, int(ended.tokens * errors[turn % len(errors)]))
        turn += 1
        if ended in held:
            ended.release()
        else:
            used[ended.tenant] += real
            ended.release(real)
        fresh = [ticket for ticket in pending if ticket.admitted]
        pending.difference_update(fresh)
        left.subtract(ticket.tenant for ticket in fresh)
        running += fresh
        assert max(used.values()) - min(used.values()) <= (room + 1) * 3000
