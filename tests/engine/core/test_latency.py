"""How long requests take, in simulated time: steps and the host's work cost time.

As on a GPU a step costs a fixed time, in which the weights are read, and a time per token. The clock moves
where the host works and where it waits for the device, and nowhere else, so every figure is exact.
"""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import TokensEvent
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.hash_runner import HashModelConfig, HashRunner, expected_tokens

FIXED_S, TOKEN_S = 1e-3, 2e-6
SCHEDULE_S, READ_S = 0.2e-3, 0.1e-3
BUDGET = 512
BUDGET_STEP_S = FIXED_S + BUDGET * TOKEN_S

overlapped = pytest.mark.parametrize("overlap", [False, True], ids=["in_turn", "overlap"])


class TimedRunner(HashRunner):
    """Steps that end at a simulated time.

    Attributes:
        idle_s: how long the device had nothing to do between the first step's start and the last one's end.
    """

    def __init__(self, num_pages, page_size, clock, token_s=TOKEN_S):
        super().__init__(num_pages, page_size, HashModelConfig(max_position_embeddings=8192))
        self.clock = clock
        self.idle_s = 0.0
        self.free_at = None
        self._token_s = token_s

    def launch(self, batch):
        step = super().launch(batch)
        self.clock.now += SCHEDULE_S
        start = self.clock.now if self.free_at is None else max(self.clock.now, self.free_at)
        self.idle_s += 0.0 if self.free_at is None else start - self.free_at
        self.free_at = start + FIXED_S + batch.num_tokens * self._token_s
        return TimedStep(self, step, self.free_at)


class TimedStep:
    def __init__(self, runner, step, end):
        self._runner = runner
        self._step = step
        self._end = end

    def sample(self, masks):
        late = max(self._runner.clock.now - self._end, 0.0)  # the forward pass was done, and had to wait
        self._end += late
        self._runner.free_at += late
        self._runner.idle_s += late
        self._step.sample(masks)

    def result(self):
        clock = self._runner.clock
        clock.now = max(clock.now, self._end) + READ_S
        return self._step.result()


@pytest.fixture
def timed(harness):
    class TimedHarness(harness):
        def __init__(self, num_pages=2048, page_size=16, token_s=TOKEN_S, **config):
            super().__init__(num_pages, page_size)
            self.runner = TimedRunner(num_pages, page_size, self.clock, token_s)
            settings = {"max_step_tokens": BUDGET, "max_queue_size": 1000} | config
            self.core = EngineCore(self.runner, SchedulerConfig(**settings), clock=self.clock)
            self.times = defaultdict(list)

        def step(self, seconds=0.0):
            events = super().step(seconds)
            for event in events:
                if isinstance(event, TokensEvent):
                    self.times[event.request.request_id].append(event.request.last_token)
            return events

        def time_of(self, name):
            """From arrival to the last token."""
            return self.ended[name].request.last_token - self.ended[name].request.arrival

    return TimedHarness


def prompt_of(number, count):
    return [(number * 37 + place * (number + 1)) % 1000 for place in range(count)]


def gaps(times):
    return [after - before for before, after in itertools.pairwise(times)]


def serve_long_prompt_among_streams(h):
    for number in range(8):
        h.add(f"stream {number}", prompt_of(number, 20), max_tokens=60)
    for _ in range(10):
        h.step()
    h.add("long", prompt_of(99, 4000), max_tokens=3)
    h.finish()
    assert h.tokens["long"] == expected_tokens(prompt_of(99, 4000), 3)
    first = h.times["long"][0]
    assert all(h.times[f"stream {number}"][-1] > first for number in range(8)), "they ran all the while"
    return max(gap for number in range(8) for gap in gaps(h.times[f"stream {number}"]))


@overlapped
def test_a_long_prompt_stretches_no_gap_beyond_two_steps_of_the_budget(timed, overlap):
    h = timed(overlap=overlap)
    assert serve_long_prompt_among_streams(h) <= 2 * BUDGET_STEP_S
    assert max(map(sum, h.runner.batches)) <= BUDGET
    # Nor do the streams keep it: nine steps of 504 prompt tokens.
    assert h.times["long"][0] - h.ended["long"].request.arrival <= 9 * (BUDGET_STEP_S + SCHEDULE_S + READ_S)


def test_a_prompt_computed_in_one_step_would(timed):
    h = timed(max_step_tokens=5000)
    assert serve_long_prompt_among_streams(h) > 4 * BUDGET_STEP_S


def time_of_one_request(timed, *, beside, lone=(100, 60), **config):
    """How long a tenant's one request takes, alone or beside 50 of another tenant."""
    h = timed(**config)
    if beside is not None:
        for number in range(50):
            h.add(f"greedy {number}", prompt_of(number, beside[0]), max_tokens=beside[1], tenant="greedy")
        for _ in range(12):
            h.step()
    h.add("lone", prompt_of(500, lone[0]), max_tokens=lone[1], tenant="modest")
    while "lone" not in h.ended:
        h.step()
    assert h.tokens["lone"] == expected_tokens(prompt_of(500, lone[0]), lone[1])
    if beside is not None:
        assert len(h.ended) < 51, "the other tenant was at it all the while"
    return h.time_of("lone"), h


WORKLOADS = {
    "answers": {"beside": (100, 200)},  # all slots are taken when the lone request comes
    "room in the batch": {"beside": (100, 200), "max_batch_size": 64},
    "prompts": {"beside": (1000, 20)},
    "prompts, long lone one": {"beside": (1000, 20), "lone": (600, 30)},
    "pool nearly full": {"beside": (100, 200), "num_pages": 240},
    "pool much too small": {"beside": (100, 200), "num_pages": 40},
    "pool much too small, long lone one": {"beside": (100, 200), "num_pages": 40, "lone": (300, 60)},
    "by priority": {"beside": (100, 200), "policy": "priority", "num_pages": 240},
    "rows that cost": {"beside": (100, 200), "token_s": 20e-6},
    "longest prefix": {"beside": (100, 200), "policy": "lpm"},
}


@overlapped
@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS.keys())
def test_fifty_requests_of_one_tenant_leave_another_its_time(timed, overlap, workload):
    alone, _ = time_of_one_request(timed, overlap=overlap, **(workload | {"beside": None}))
    together, _ = time_of_one_request(timed, overlap=overlap, **workload)
    assert together <= 1.5 * alone


def test_without_fairness_they_do_not(timed):
    alone, _ = time_of_one_request(timed, beside=None, fairness=False)
    together, _ = time_of_one_request(timed, beside=(100, 200), fairness=False)
    assert together > 3.0 * alone


def test_the_tenant_that_holds_most_gives_way_and_the_other_is_left_alone(timed):
    _, h = time_of_one_request(timed, beside=(100, 200), num_pages=100)
    assert h.ended["lone"].usage.preemptions == 0
    assert h.core.load().totals.preemptions < 20


def test_nobody_who_runs_is_left_out_for_long(timed):
    """Rows that cost so much that the greedy tenant is held back, until it has few enough requests."""
    h = timed(max_batch_size=2, max_concurrent_requests=4, token_s=2e-3)
    for number in range(3):
        h.add(f"greedy {number}", prompt_of(number, 4), max_tokens=400, tenant="greedy")
    h.add("lone", prompt_of(9, 4), max_tokens=400, tenant="modest")
    steps_without = dict.fromkeys(("greedy 1", "greedy 2", "lone"), 0)
    for step in range(200):
        if step == 120:
            h.core.cancel("greedy 0")
        before = {name: len(h.tokens[name]) for name in steps_without}
        h.step()
        for name, length in before.items():
            steps_without[name] = 0 if len(h.tokens[name]) > length else steps_without[name] + 1
        if step > 20:
            assert steps_without["lone"] <= 4
            assert max(steps_without.values()) <= 24


def test_a_pause_is_not_taken_for_a_slow_step(timed):
    """With overlap the step after a request's stop token may be read when the next request comes."""
    alone, _ = time_of_one_request(timed, beside=None, overlap=True)
    h = timed(overlap=True)
    for number in range(3):
        stop = expected_tokens(prompt_of(number, 30), 9)[-1]
        h.add(str(number), prompt_of(number, 30), max_tokens=50, stop_token_ids=[stop])
        h.finish()
        h.clock.now += 60.0
    for number in range(50):
        h.add(f"greedy {number}", prompt_of(number, 1000), max_tokens=20, tenant="greedy")
    for _ in range(12):
        h.step()
    h.add("lone", prompt_of(500, 100), max_tokens=60, tenant="modest")
    while "lone" not in h.ended:
        h.step()
    assert h.time_of("lone") <= 1.5 * alone


def test_the_device_never_waits_for_the_host_with_overlap(timed):
    idle = {}
    for overlap in (False, True):
        h = timed(overlap=overlap)
        for number in range(4):
            h.add(str(number), prompt_of(number, 30), max_tokens=50)
        h.finish()
        idle[overlap] = h.runner.idle_s
        assert all(h.tokens[str(n)] == expected_tokens(prompt_of(n, 30), 50) for n in range(4))
    assert idle[True] == pytest.approx(0.0, abs=1e-9)
    steps = 50
    assert idle[False] == pytest.approx((steps - 1) * (SCHEDULE_S + READ_S))


@overlapped
def test_timings_are_those_of_the_clock(timed, overlap):
    h = timed(overlap=overlap)
    h.add("a", prompt_of(1, 40), max_tokens=5)
    h.finish()
    timings = h.ended["a"].timings
    first = SCHEDULE_S + FIXED_S + 40 * TOKEN_S
    # With overlap the second step is scheduled, on the host's time alone, before the first is read.
    assert timings.time_to_first_token_s == pytest.approx(first + READ_S)
    per_token = FIXED_S + TOKEN_S + (0.0 if overlap else SCHEDULE_S + READ_S)
    assert timings.decode_s == pytest.approx(4 * per_token)
    assert timings.queue_s + timings.prefill_s == pytest.approx(timings.time_to_first_token_s)


@overlapped
def test_another_tenants_long_prompt_stretches_no_gap_either(timed, overlap):
    h = timed(overlap=overlap)
    for number in range(8):
        h.add(f"stream {number}", prompt_of(number, 20), max_tokens=60, tenant="streams")
    for _ in range(12):
        h.step()
    h.add("long", prompt_of(99, 4000), max_tokens=3, tenant="reader")
    h.finish()
    assert h.tokens["long"] == expected_tokens(prompt_of(99, 4000), 3)
    worst = max(gap for number in range(8) for gap in gaps(h.times[f"stream {number}"]))
    assert worst <= 2 * BUDGET_STEP_S
