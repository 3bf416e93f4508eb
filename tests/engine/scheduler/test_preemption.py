from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.preemption import choose_victim, weakest
from rhizome_engine.scheduler.waiting_queue import insert_by_rank

FCFS, PRIORITY = SchedulerConfig(), SchedulerConfig(policy="priority")


def test_the_latest_of_the_largest_tenant_gives_way(make_request):
    running = [make_request(tenant=tenant) for tenant in "abaab"]
    assert choose_victim(make_request(tenant="c"), running, FCFS) is running[3]


def test_nobody_gives_way_where_both_would_have_as_many(make_request):
    running = [make_request(tenant=tenant) for tenant in "aab"]
    assert choose_victim(make_request(tenant="b"), running, FCFS) is None
    assert choose_victim(make_request(tenant="a"), running, FCFS) is None
    assert choose_victim(make_request(tenant="c"), running[:1], FCFS) is None
    assert choose_victim(make_request(tenant="c"), [], PRIORITY) is None


def test_tenants_do_not_count_without_fairness(make_request):
    running = [make_request(tenant="a") for _ in range(5)]
    assert choose_victim(make_request(tenant="b"), running, SchedulerConfig(fairness=False)) is None


def test_the_lowest_priority_gives_way_to_a_higher_one_only(make_request):
    running = []
    for priority in (1, 5, 1, 3):
        insert_by_rank(running, make_request(priority=priority), PRIORITY)
    assert choose_victim(make_request(priority=2), running, PRIORITY) is running[-1]
    assert running[-1].priority == 1
    assert choose_victim(make_request(priority=1), running, PRIORITY) is None
    assert choose_victim(make_request(priority=9), running, FCFS) is None


def test_fairness_takes_nothing_from_a_higher_priority(make_request):
    running = [make_request(tenant="a", priority=1) for _ in range(4)]
    assert choose_victim(make_request(tenant="b", priority=0), running, PRIORITY) is None
    assert choose_victim(make_request(tenant="b", priority=1), running, PRIORITY) is running[-1]


requests = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 2)), min_size=1, max_size=24)


@pytest.mark.parametrize("config", [FCFS, PRIORITY], ids=["fcfs", "priority"])
@given(requests=requests, slots=st.integers(1, 8), order=st.randoms())
def test_displacements_come_to_an_end(make_request, config, requests, slots, order):
    """Whoever waits tries to start, in any order, those displaced as well: after so many there is peace."""
    waiting = [make_request(tenant=tenant, priority=priority) for tenant, priority in requests]
    running = []
    displaced = 0
    while True:
        order.shuffle(waiting)
        for request in waiting:
            if len(running) < slots:
                break
            victim = choose_victim(request, running, config)
            if victim is not None:
                rows = Counter(other.tenant for other in running)
                assert victim.priority <= request.priority or config is FCFS
                assert victim.priority < request.priority or rows[victim.tenant] >= rows[request.tenant] + 2
                running.remove(victim)
                waiting.append(victim)
                displaced += 1
                break
        else:
            break
        waiting.remove(request)
        insert_by_rank(running, request, config)
        # Each displacement lowers the sum of squares of rows, or raises the sum of priorities.
        assert displaced <= (2 * slots + 1) * slots * slots
    if waiting and config is FCFS:
        rows = Counter(other.tenant for other in running)
        assert max(rows.values()) - min(rows[request.tenant] for request in waiting) <= 1


def test_pages_come_from_the_last_of_the_largest_tenant(make_request):
    running = [make_request(tenant=tenant) for tenant in "aaabab"]
    assert weakest(running, FCFS) is running[4]
    assert weakest(running, SchedulerConfig(fairness=False)) is running[5]


def test_among_equal_tenants_the_last_in_rank_gives_way(make_request):
    running = [make_request(tenant=tenant) for tenant in "cab"]
    assert weakest(running, FCFS) is running[-1]
    assert weakest(running[:1], FCFS) is running[0]


def test_pages_come_from_the_lowest_priority_first(make_request):
    running = []
    for tenant, priority in (("a", 2), ("a", 2), ("a", 1), ("b", 1), ("b", 2)):
        insert_by_rank(running, make_request(tenant=tenant, priority=priority), PRIORITY)
    victim = weakest(running, PRIORITY)
    assert (victim.tenant, victim.priority) == ("a", 1)


@pytest.mark.parametrize("config", [FCFS, PRIORITY], ids=["fcfs", "priority"])
@given(requests=requests)
def test_the_first_in_rank_never_gives_its_pages_to_another(make_request, config, requests):
    running = []
    for tenant, priority in requests:
        insert_by_rank(running, make_request(tenant=tenant, priority=priority), config)
    while len(running) > 1:
        victim = weakest(running, config)
        assert victim is not running[0]
        running.remove(victim)


@given(requests=requests)
def test_who_was_just_let_in_is_not_the_one_that_gives_its_pages_back(make_request, requests):
    """Else it would take another one's place and be thrown out in turn, for ever."""
    running = [make_request(tenant=tenant) for tenant, _ in requests[:-1]]
    request = make_request(tenant=requests[-1][0])
    victim = choose_victim(request, running, FCFS)
    if victim is not None:
        running.remove(victim)
        running.append(request)
        rows = Counter(other.tenant for other in running)
        assert weakest(running, FCFS) is not request or rows[victim.tenant] == rows[request.tenant]
