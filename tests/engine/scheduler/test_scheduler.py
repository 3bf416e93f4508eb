"""What a step computes, in which order, and who gives way. Nothing is computed here, only counted."""

from random import Random

import numpy as np
import pytest

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.sampling.rows import SamplingRows
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import RequestState
from rhizome_engine.scheduler.scheduler import Scheduler
from rhizome_engine.scheduler.slots import SlotTable


class Stepper:
    """A scheduler whose every new token is 7."""

    def __init__(self, make_request, num_pages=64, page_size=1, **config):
        self.make_request = make_request
        self.config = SchedulerConfig(**config)
        self.pool = PagePool(num_pages, page_size)
        self.cache = RadixCache(self.pool)
        self.slots = SlotTable(self.config.num_slots, num_pages, page_size)
        sampling = SamplingRows(self.config.num_slots, 100_000)
        self.scheduler = Scheduler(self.config, self.pool, self.cache, self.slots, sampling)
        self.added = 0

    def add(self, name, prompt_tokens, max_output=50, **settings):
        # Distinct tokens, so that nothing is shared unless a test wants it.
        first = settings.pop("first", 100 * self.added)
        prompt = [(first + number) % 100_000 for number in range(prompt_tokens)]
        self.added += 1
        request = self.make_request(prompt, max_output, request_id=name, **settings)
        self.scheduler.add(request)
        return request

    def step(self, now=0.0):
        """Take a step; the tokens computed by request id."""
        plan = self.scheduler.schedule(now)
        if plan is None:
            return {}
        lengths = {request.request_id: 1 for request in plan.decode}
        lengths |= {chunk.request.request_id: chunk.num_tokens for chunk in plan.chunks}
        assert len(lengths) == len(plan.requests) <= self.config.max_rows
        assert sum(lengths.values()) <= self.config.max_step_tokens
        self.scheduler.confirm(plan, np.full(len(plan.sampled), 7))
        for request, position in zip(plan.sampled, plan.sampled_positions.tolist(), strict=True):
            assert position == request.num_tokens
            request.num_computed = position
            request.append(7, now)
            if request.num_tokens == request.max_total_tokens:
                self.scheduler.finish(request)
        return lengths

    @property
    def is_idle(self):
        return not self.scheduler.running and not len(self.scheduler.waiting)


@pytest.fixture
def stepper(make_request):
    return lambda **settings: Stepper(make_request, **settings)


def test_a_long_prompt_takes_what_decoding_leaves_of_the_budget(stepper):
    s = stepper(max_step_tokens=8)
    s.add("a", 3)
    s.add("b", 2)
    assert s.step() == {"a": 3, "b": 2}
    s.add("long", 20)
    for _ in range(3):
        assert s.step() == {"a": 1, "b": 1, "long": 6}
    assert s.step() == {"a": 1, "b": 1, "long": 2}
    assert s.step() == {"a": 1, "b": 1, "long": 1}


def test_prompts_share_a_step_and_a_short_one_is_done_at_once(stepper):
    s = stepper(max_step_tokens=32, num_pages=512)
    s.add("long", 100)
    assert s.step() == {"long": 32}
    s.add("other", 100)
    s.add("short", 6)
    assert s.step() == {"long": 13, "other": 13, "short": 6}
    assert s.step() == {"short": 1, "long": 16, "other": 15}


def test_so_many_prompts_are_computed_at_once(stepper):
    s = stepper(max_step_tokens=12, max_partial_prefills=2, num_pages=512)
    for name in "abc":
        s.add(name, 20, max_output=1)
    assert s.step() == {"a": 6, "b": 6}
    assert [len(s.step()) for _ in range(2)] == [2, 2]
    assert s.step() == {"a": 2, "b": 2} or set(s.step()) == {"c"}


def test_a_tenant_without_a_prompt_under_way_may_always_add_one(stepper):
    s = stepper(max_step_tokens=12, max_partial_prefills=2, num_pages=512)
    for name in "abc":
        s.add(name, 20, tenant="greedy")
    s.step()
    s.add("lone", 20, tenant="modest")
    assert s.step() == {"a": 3, "b": 3, "lone": 6}


def test_one_request_takes_no_more_than_its_chunk_of_a_step(stepper):
    s = stepper(max_step_tokens=100, max_chunk_tokens=5)
    s.add("a", 12)
    s.add("b", 7)
    assert s.step() == {"a": 5, "b": 5}
    assert s.step() == {"a": 5, "b": 2}
    assert s.step() == {"a": 2, "b": 1}


def test_waiting_requests_start_in_order_of_arrival_within_rows(stepper):
    s = stepper(max_step_tokens=12, max_batch_size=3)
    for name in "abcd":
        s.add(name, 4)
    assert s.step() == {"a": 4, "b": 4, "c": 4}
    assert s.step() == {"a": 1, "b": 1, "c": 1}
    s.scheduler.finish(s.scheduler.running[0])
    assert s.step() == {"b": 1, "c": 1, "d": 4}


def test_everybody_finishes_however_small_the_budget_is(stepper):
    s = stepper(max_step_tokens=1, max_batch_size=8)
    requests = [s.add(name, 3, max_output=4) for name in "abc"]
    steps = 0
    while not s.is_idle:
        assert sum(s.step().values()) == 1
        steps += 1
    assert steps == 3 * (3 + 3) and all(request.num_tokens == 7 for request in requests)


def test_more_running_requests_than_rows_take_turns(stepper):
    s = stepper(max_batch_size=2, max_concurrent_requests=6, max_step_tokens=64, num_pages=400)
    for number in range(6):
        s.add(str(number), 3)
    for _ in range(20):
        s.step()
    assert len(s.scheduler.running) == 6
    rows = [s.step() for _ in range(12)]
    counts = {str(number): sum(str(number) in row for row in rows) for number in range(6)}
    assert set(counts.values()) == {4}


def test_the_youngest_gives_way_and_comes_back_first(stepper):
    s = stepper(num_pages=12)
    old, young = s.add("old", 4), s.add("young", 4)
    s.step()
    s.step()
    late = s.add("late", 2)
    assert s.step() == {"old": 1, "young": 1}  # 12 pages are in use now, and "late" has to wait
    assert s.step() == {"old": 1}
    assert list(s.scheduler.waiting) == [young, late] and s.scheduler.running == [old]
    assert young.state is RequestState.WAITING and young.pages is None and young.num_computed == 0
    assert s.scheduler.num_preemptions == young.preemptions == 1
    s.scheduler.finish(old)
    # Its pages were left in the tree, and one of them was evicted for the oldest request's new token.
    assert s.step()["young"] <= 2 and s.scheduler.running == [young, late]


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
@pytest.mark.parametrize("max_step_tokens", [1, 4, 64])
def test_the_first_in_rank_always_progresses_and_everybody_finishes(stepper, policy, max_step_tokens):
    s = stepper(num_pages=20, max_batch_size=8, policy=policy, max_step_tokens=max_step_tokens)
    requests = [s.add(str(number), 5, max_output=15) for number in range(8)]
    steps = 0
    while not s.is_idle:
        # The one row of a step may have to give way to nobody's advantage, but not twice in a row.
        assert s.step() or s.step()
        steps += 1
        assert steps < 1000
    assert all(len(request.output_ids) == 15 for request in requests)
    assert s.pool.num_free + s.cache.evictable_pages == 20
    if max_step_tokens > 1:
        assert s.scheduler.num_preemptions > 0


def test_a_page_for_everybody_who_runs_is_left_when_another_one_starts(stepper):
    s = stepper(num_pages=12, page_size=16, max_batch_size=8)
    for number in range(12):
        s.add(str(number), 20, max_output=96)
    while not s.is_idle:
        s.step()
    assert 0 < s.scheduler.num_preemptions <= 16  # without that, 24


def test_prompts_that_do_not_fit_together_are_not_computed_together(stepper):
    s = stepper(num_pages=100, page_size=4, max_batch_size=8, max_step_tokens=64)
    for number in range(12):
        s.add(str(number), 200, max_output=20, first=1000 * number)
    computed = 0
    while not s.is_idle:
        computed += sum(s.step().values())
    assert computed == 12 * 219 and s.scheduler.num_preemptions == 0


def test_nobody_overtakes_the_first_that_waits_for_room(stepper):
    s = stepper(num_pages=20)
    s.add("running", 10, max_output=6)
    s.step()
    s.add("large", 15, max_output=2)
    s.add("small", 2, max_output=2)
    for _ in range(5):
        assert s.step() == {"running": 1} and len(s.scheduler.waiting) == 2
    assert "large" in s.step()


@pytest.mark.parametrize("seed", range(80, 100))
def test_who_was_preempted_is_not_started_again_in_the_same_step(stepper, seed):
    """The step under way still writes to its old pages."""
    random = Random(seed)
    s = stepper(
        num_pages=random.choice([24, 40, 60]),
        page_size=4,
        max_step_tokens=random.choice([8, 32]),
        max_batch_size=8,
    )
    requests = []
    for number in range(60):
        for _ in range(random.randrange(3)):
            before = {request: request.preemptions for request in requests}
            s.step()
            again = [request for request in requests if request.preemptions > before[request]]
            assert all(request.state is RequestState.WAITING for request in again)
        prompt_tokens, max_output = random.randrange(4, 90), random.randrange(1, 20)
        requests.append(s.add(str(number), prompt_tokens, max_output, tenant=random.choice("aaaaaaabc")))


def test_deadlines_come_up_once_and_not_for_finished_requests(stepper):
    s = stepper(max_batch_size=1)
    done, queued = s.add("done", 2, deadline=5.0), s.add("queued", 2, deadline=4.0)
    s.add("later", 2, deadline=9.0)
    s.step()
    s.scheduler.finish(done)
    assert s.scheduler.expired(3.9) == []
    assert s.scheduler.expired(6.0) == [queued]
    s.scheduler.finish(queued)
    assert s.scheduler.expired(6.0) == []


def test_a_tenant_alone_takes_half_the_slots_of_a_greedy_one_at_most(stepper):
    s = stepper(max_batch_size=4, num_pages=256)
    for number in range(8):
        s.add(f"greedy {number}", 3, tenant="greedy")
    s.step()
    for number in range(8):
        s.add(f"late {number}", 3, tenant="late")
    for _ in range(4):
        s.step()
    tenants = sorted(request.tenant for request in s.scheduler.running)
    assert tenants == ["greedy", "greedy", "late", "late"]
    assert s.scheduler.num_preemptions == 2
    for _ in range(20):  # and there is peace
        s.step()
    assert s.scheduler.num_preemptions == 2


@pytest.mark.parametrize(
    "name",
    [
        "max_batch_size",
        "max_queue_size",
        "max_concurrent_requests",
        "max_step_tokens",
        "max_chunk_tokens",
        "max_partial_prefills",
        "max_context_tokens",
    ],
)
def test_a_limit_below_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        SchedulerConfig(**{name: 0})


def test_an_unknown_policy_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="policy must be one of fcfs, lpm, priority, not 'fifo'"):
        SchedulerConfig(policy="fifo")


def test_a_negative_budget_for_pins_is_refused():
    with pytest.raises(ValueError, match="max_pinned_tokens must not be negative, not -1"):
        SchedulerConfig(max_pinned_tokens=-1)
