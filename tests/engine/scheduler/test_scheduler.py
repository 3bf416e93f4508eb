"""What a step computes, in which order, and who gives way. Chunks are run by nobody here: only counted."""

import pytest

from rhizome_engine.kvcache.page_pool import PagePool
from rhizome_engine.kvcache.radix_cache import RadixCache
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request, RequestState
from rhizome_engine.scheduler.scheduler import Scheduler


class Stepper:
    """A scheduler whose every new token is 7."""

    def __init__(self, num_pages=64, page_size=1, **config):
        self.pool = PagePool(num_pages, page_size)
        self.cache = RadixCache(self.pool)
        self.scheduler = Scheduler(SchedulerConfig(**config), self.pool, self.cache, lambda *_: None)

    def add(self, name, prompt_tokens, max_output=50, deadline=None):
        # Distinct tokens, so that nothing is shared unless a test wants it.
        first = 1000 * len(self.scheduler.waiting) + 10_000 * len(self.scheduler.running)
        request = Request(name, range(first, first + prompt_tokens), deadline=deadline)
        request.admit(max_output, frozenset(), now=0.0, unix_ns=0)
        self.scheduler.add(request)
        return request

    def step(self, now=0.0):
        """Take a step; the tokens computed by request id."""
        chunks, _ = self.scheduler.schedule(now)
        for chunk in chunks:
            samples = chunk.samples
            self.scheduler.advance(chunk)
            if samples:
                chunk.request.append(7, now)
                if len(chunk.request.output_ids) == chunk.request.max_output:
                    self.scheduler.finish(chunk.request)
        return {chunk.request.request_id: chunk.num_tokens for chunk in chunks}


def test_a_long_prompt_takes_what_decoding_leaves_of_the_budget():
    s = Stepper(max_step_tokens=8)
    s.add("a", 3)
    s.add("b", 2)
    assert s.step() == {"a": 3, "b": 2}
    s.add("long", 20)
    assert s.step() == {"a": 1, "b": 1, "long": 6}
    assert s.step() == {"a": 1, "b": 1, "long": 6}
    assert s.step() == {"a": 1, "b": 1, "long": 6}
    assert s.step() == {"a": 1, "b": 1, "long": 2}
    assert s.step() == {"a": 1, "b": 1, "long": 1}


def test_waiting_requests_start_in_order_of_arrival_within_budget_and_rows():
    s = Stepper(max_step_tokens=10, max_batch_size=3)
    for name in "abcd":
        s.add(name, 4)
    assert s.step() == {"a": 4, "b": 4, "c": 2}
    assert s.step() == {"a": 1, "b": 1, "c": 2}
    s.scheduler.finish(s.scheduler.running[0])
    assert s.step() == {"b": 1, "c": 1, "d": 4}


def test_one_request_takes_no_more_than_its_chunk_of_a_step():
    s = Stepper(max_step_tokens=100, max_chunk_tokens=5)
    s.add("a", 12)
    s.add("b", 7)
    assert s.step() == {"a": 5, "b": 5}
    assert s.step() == {"a": 5, "b": 2}
    assert s.step() == {"a": 2, "b": 1}


def test_everybody_who_runs_advances_however_small_the_budget_is():
    s = Stepper(max_step_tokens=2, max_batch_size=8)
    for name in "abc":
        s.add(name, 1, max_output=4)
    assert s.step() == {"a": 1, "b": 1}
    assert s.step() == {"a": 1, "b": 1}
    while set(s.step()) != {"c"}:
        pass


def test_the_youngest_gives_way_and_comes_back_first():
    s = Stepper(num_pages=12)
    old, young = s.add("old", 4), s.add("young", 4)
    s.step()
    s.step()
    late = s.add("late", 2)
    assert s.step() == {"old": 1, "young": 1}  # 12 pages are in use now, and "late" has to wait
    assert s.step() == {"old": 1}
    assert list(s.scheduler.waiting) == [young, late] and s.scheduler.running == [old]
    assert young.state is RequestState.WAITING and young.pages is None and young.num_computed == 0
    assert s.scheduler.num_preemptions == 1
    s.scheduler.finish(old)
    # Its pages were left in the tree, and one of them was evicted for the oldest request's new token.
    assert s.step()["young"] <= 2 and s.scheduler.running == [young, late]


def test_the_oldest_request_always_progresses_and_everybody_finishes():
    s = Stepper(num_pages=20, max_batch_size=8)
    requests = [s.add(str(number), 5, max_output=15) for number in range(8)]
    for _ in range(2000):
        if not (s.scheduler.running or s.scheduler.waiting):
            break
        oldest = min(
            (r for r in requests if r.state is not RequestState.FINISHED), key=lambda r: int(r.request_id)
        )
        assert oldest.request_id in s.step()
    assert all(len(request.output_ids) == 15 for request in requests)
    assert s.scheduler.num_preemptions > 0
    assert s.pool.num_free + s.cache.evictable_pages == 20


def test_a_page_for_everybody_who_runs_is_left_when_another_one_starts():
    s = Stepper(num_pages=12, page_size=16, max_batch_size=8)
    for number in range(12):
        s.add(str(number), 20, max_output=96)
    while s.scheduler.running or s.scheduler.waiting:
        s.step()
    assert 0 < s.scheduler.num_preemptions <= 16  # without that, 24


def test_deadlines_come_up_once_and_not_for_finished_requests():
    s = Stepper(max_batch_size=1)
    done, queued = s.add("done", 2, deadline=5.0), s.add("queued", 2, deadline=4.0)
    s.add("later", 2, deadline=9.0)
    s.step()
    s.scheduler.finish(done)
    assert s.scheduler.expired(3.9) == []
    assert s.scheduler.expired(6.0) == [queued]
    assert s.scheduler.expired(6.0) == []


@pytest.mark.parametrize(
    "name", ["max_batch_size", "max_queue_size", "max_step_tokens", "max_chunk_tokens", "max_context_tokens"]
)
def test_a_limit_below_one_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        SchedulerConfig(**{name: 0})
