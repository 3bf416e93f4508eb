"""Drives an engine core over the hash runner, with conservation checked after every step."""

from __future__ import annotations

import functools
import math
from collections import defaultdict

import pytest

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import (
    EmbeddingEvent,
    FailedEvent,
    FinishedEvent,
    PromptLogprobsEvent,
    StartedEvent,
    TokensEvent,
)
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import Request
from rhizome_testing.hash_runner import HashRunner


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Harness:
    """Collects events by request id and asserts on their order as they come."""

    def __init__(self, num_pages=64, page_size=4, eos=(), **config):
        self.runner = HashRunner(num_pages, page_size)
        self.clock = Clock()
        self.core = EngineCore(self.runner, SchedulerConfig(**config), eos, clock=self.clock)
        self.tokens = defaultdict(list)
        self.scores = defaultdict(list)
        self.vectors = {}
        self.started = {}
        self.ended = {}

    def add(self, request_id, prompt_ids, params=None, **settings):
        request = Request(request_id, prompt_ids, params or SamplingParams(), **settings)
        self.core.add(request)
        return request

    def step(self, seconds=0.0):
        self.clock.now += seconds
        events = self.core.step()
        self.core.check_conservation()
        for event in events:
            name = event.request.request_id
            assert name not in self.ended, "an event followed the last one"
            match event:
                case StartedEvent():
                    assert name not in self.started
                    self.started[name] = event
                case TokensEvent():
                    assert name in self.started
                    self.tokens[name] += event.token_ids
                case EmbeddingEvent():
                    assert name in self.started and name not in self.vectors
                    self.vectors[name] = event.values.tolist()
                case PromptLogprobsEvent():
                    assert name in self.started and not self.tokens[name]
                    self.scores[name] += event.logprobs
                case FinishedEvent() | FailedEvent():
                    self.ended[name] = event
        return events

    def finish(self, max_steps=20_000):
        for _ in range(max_steps):
            if not self.core.has_work:
                return self
            self.step()
        raise AssertionError(f"still at work after {max_steps} steps")

    def assert_totals_agree(self):
        """The engine's totals are the sums of what the requests' last events said."""
        totals, ends = self.core.load().totals, list(self.ended.values())
        usages, timings = [end.usage for end in ends], [end.timings for end in ends]
        ways = (totals.completed, totals.aborted, totals.expired, totals.failed, totals.invalid)
        assert totals.received == sum(ways) == len(ends)
        assert totals.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
        assert totals.cache_hit_tokens == sum(usage.cached_tokens for usage in usages)
        resumed = sum(end.request.resumed_tokens for end in ends)
        assert totals.generated_tokens == sum(usage.completion_tokens for usage in usages) - resumed
        assert totals.forced_tokens == sum(usage.forced_tokens for usage in usages)
        assert totals.preemptions == sum(usage.preemptions for usage in usages)
        for phase in ("queue_s", "prefill_s", "decode_s"):
            spent = sum(getattr(each, phase) for each in timings)
            assert math.isclose(getattr(totals, phase), spent, abs_tol=1e-9)

    def generate(self, request_id, prompt_ids, max_tokens, **settings):
        self.add(request_id, prompt_ids, max_tokens=max_tokens, **settings)
        return self.finish().tokens[request_id]


@pytest.fixture(scope="session")
def harness():
    return Harness


@pytest.fixture(scope="session", params=[False, True], ids=["in_turn", "overlap"])
def any_harness(request):
    """The harness with steps computed in turn, and with each launched before the one before was read."""
    return functools.partial(Harness, overlap=request.param)
