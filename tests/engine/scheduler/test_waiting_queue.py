"""Who starts next, against a plain sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.fair_share import FairShare
from rhizome_engine.scheduler.waiting_queue import WaitingQueue, insert_by_rank

CACHED = list(range(100, 120))


class Queue:
    """A queue over a cache that holds `CACHED`."""

    def __init__(self, **config):
        pool = PagePool(64, 4)
        self.cache = RadixCache(pool)
        self.cache.insert("", np.array(CACHED, np.int32), pool.allocate(5))
        self.shares = FairShare()
        self.queue = WaitingQueue(SchedulerConfig(**config), self.cache, self.shares)

    def add(self, request):
        request.tenant_number = self.shares.open(request.tenant)
        self.queue.add(request)
        return request

    def serve(self, request, cost):
        self.shares.charge(np.array([request.tenant_number]), cost)

    def order(self, now=0.0):
        return list(self.queue.candidates(now))


def cached(request):
    same = 0
    for token, known in zip(request.prompt_ids[:-1], CACHED, strict=False):
        if token != known:
            break
        same += 1
    return same


waiting = st.lists(
    st.tuples(
        st.integers(0, 22),  # tokens of the cached prefix
        st.integers(0, 6),  # arrival
        st.integers(-2, 2),  # priority
        st.sampled_from("xyz"),
    ),
    max_size=14,
)


@given(
    waiting=waiting,
    served=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    policy=st.sampled_from(["fcfs", "lpm", "priority"]),
    fairness=st.booleans(),
)
def test_candidates_come_in_the_order_of_a_plain_sort(make_request, waiting, served, policy, fairness):
    q = Queue(policy=policy, fairness=fairness, lpm_max_wait_s=2.0)
    requests = []
    for prefix, arrival, priority, tenant in sorted(waiting, key=lambda each: each[1]):
        prompt = [*CACHED[:prefix], 1, 2]
        request = make_request(prompt, arrival=float(arrival), priority=priority, tenant=tenant)
        requests.append(q.add(request))
    for tenant, cost in zip("xyz", served, strict=True):
        for request in [r for r in requests if r.tenant == tenant][:1]:
            q.serve(request, cost)
    now = 6.0

    def within_tenant(request):
        if policy == "priority":
            return (-request.priority, request.arrival_order)
        if policy == "lpm" and request.arrival > now - 2.0:
            return (1, -cached(request), request.arrival_order)
        return (0, 0, request.arrival_order)

    lines = {}
    for request in sorted(requests, key=within_tenant):
        lines.setdefault(request.tenant if fairness else "", []).append(request)
    expected = []
    promised = dict.fromkeys(lines, 0)
    while lines:

        def rank(name, lines=lines):
            head = lines[name][0]
            cost = q.shares.cost_served(name) + promised[name] if fairness else 0.0
            return (-head.priority if policy == "priority" else 0, cost, head.arrival_order)

        name = min(lines, key=rank)
        expected.append(lines[name].pop(0))
        promised[name] += expected[-1].num_tokens
        lines = {name: line for name, line in lines.items() if line}
    assert q.order(now) == expected
    assert len(q.queue) == len(requests) and set(q.queue) == set(requests)


@given(waiting=waiting, policy=st.sampled_from(["fcfs", "lpm", "priority"]), order=st.randoms())
def test_requests_leave_in_any_order_and_may_come_back_to_their_place(make_request, waiting, policy, order):
    q = Queue(policy=policy)
    requests = [
        q.add(make_request([*CACHED[:prefix], 1, 2], arrival=float(at), priority=priority, tenant=tenant))
        for prefix, at, priority, tenant in waiting
    ]
    before = q.order()
    shuffled = order.sample(requests, len(requests))
    for request in shuffled[: len(shuffled) // 2]:
        q.queue.remove(request)
        q.queue.add(request)
    assert q.order() == before
    for left, request in enumerate(reversed(shuffled)):
        assert len(q.queue) == len(requests) - left
        q.queue.remove(request)
    assert q.order() == [] and len(q.queue) == 0


def test_nobody_is_overtaken_for_ever_by_better_matches(make_request):
    q = Queue(policy="lpm", lpm_max_wait_s=2.0)
    unlucky = q.add(make_request([1, 2, 3], arrival=0.0))
    q.add(make_request([*CACHED, 1], arrival=0.0))
    now = 0.0
    while q.order(now)[0] is not unlucky:
        q.queue.remove(q.order(now)[0])
        for _ in range(3):
            q.add(make_request([*CACHED, 1], arrival=now))
        now += 0.25
    assert now == 2.0


def test_beyond_the_ranked_ones_order_of_arrival_counts(make_request):
    q = Queue(policy="lpm", lpm_max_wait_s=100.0)
    cold = [q.add(make_request([1, 2, 3])) for _ in range(200)]
    warm = q.add(make_request([*CACHED, 1]))
    assert q.order() == [*cold, warm]
    for request in cold[:73]:  # 127 are left before it: it is looked up now
        q.queue.remove(request)
    assert q.order() == [warm, *cold[73:]]


def test_what_a_tenant_was_promised_counts_at_once(make_request):
    q = Queue()
    a1, a2, b1, b2 = (q.add(make_request(tenant=tenant)) for tenant in "aabb")
    assert q.order() == [a1, b1, a2, b2]


def test_priorities_count_before_tenants(make_request):
    q = Queue(policy="priority")
    served = q.add(make_request(tenant="a", priority=2**31 - 1))
    modest = q.add(make_request(tenant="b", priority=-(2**31)))
    q.serve(served, 1e9)
    assert q.order() == [served, modest]


def test_prefixes_are_looked_up_again_only_when_the_cache_changed(make_request, monkeypatch):
    q = Queue(policy="lpm")
    looked_up = []
    peek = q.cache.peek
    monkeypatch.setattr(q.cache, "peek", lambda *args: looked_up.append(args) or peek(*args))
    requests = [q.add(make_request([*CACHED[:count], 1, 2])) for count in (4, 12, 8)]
    assert q.order() == [requests[1], requests[2], requests[0]] == q.order()
    assert len(looked_up) == 3
    q.cache.clear()
    assert q.order() == requests
    assert len(looked_up) == 6


@given(priorities=st.lists(st.integers(-2, 2), max_size=10), policy=st.sampled_from(["fcfs", "priority"]))
def test_running_requests_are_kept_in_the_same_rank(make_request, priorities, policy):
    config, running = SchedulerConfig(policy=policy), []
    requests = [make_request(priority=priority) for priority in priorities]
    for request in reversed(requests):
        insert_by_rank(running, request, config)
    assert running == (
        sorted(requests, key=lambda r: (-r.priority, r.arrival_order)) if policy == "priority" else requests
    )


@pytest.mark.parametrize("fairness", [True, False])
def test_the_order_of_arrival_is_kept_within_a_tenant(make_request, fairness):
    q = Queue(fairness=fairness)
    requests = [q.add(make_request(tenant="a")) for _ in range(20)]
    assert q.order() == requests
