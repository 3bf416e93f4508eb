"""The queue in front of the backends."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.routing.admission_bench import HIGH, LOW, NORMAL, Slots, counts_add_up, drain, make, rules

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
