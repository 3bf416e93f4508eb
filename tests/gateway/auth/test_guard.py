"""Admission, with a clock of the test's own."""

from __future__ import annotations

import asyncio
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rhizome_gateway.auth.caller import Caller, Limits
from rhizome_gateway.auth.guard import Guard, Permit
from rhizome_gateway.auth.ledger import MemoryLedger
from rhizome_gateway.errors import ApiError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> Guard:
    return Guard(MemoryLedger(clock), max_open_requests=100)


def caller(name: str = "alice", **limits: int) -> Caller:
    return Caller(name=name, tenant=name, limits=Limits(**limits))


def refused(guard: Guard, who: Caller, **asked: int) -> ApiError:
    with pytest.raises(ApiError) as caught:
        guard.admit(who, **asked)
    error = caught.value
    assert error.headers["Retry-After"].isdecimal()
    assert int(error.headers["Retry-After"]) >= 1
    return error


def test_requests_beyond_the_minutes_are_a_429_that_says_when_to_come_back(guard, clock):
    alice = caller(requests_per_minute=6)
    for left in (5, 4, 3, 2, 1, 0):
        permit = guard.admit(alice)
        assert permit.headers["x-ratelimit-remaining-requests"] == str(left)
        permit.release()
    error = refused(guard, alice)
    assert (error.status, error.kind, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error.headers["Retry-After"] == "10"
    assert error.headers["x-ratelimit-limit-requests"] == "6"
    clock.now += 9.9
    assert refused(guard, alice).headers["Retry-After"] == "1"
    clock.now += 0.1
    guard.admit(alice).release()


def test_one_key_does_not_use_up_anothers(guard):
    guard.admit(caller("alice", requests_per_minute=1))
    refused(guard, caller("alice", requests_per_minute=1))
    guard.admit(caller("bob", requests_per_minute=1))


def test_prompt_and_max_tokens_are_reserved_and_the_rest_comes_back(guard):
    alice = caller(tokens_per_minute=1000)
    permit = guard.admit(alice, prompt_tokens=100, max_tokens=800)
    assert permit.headers["x-ratelimit-remaining-tokens"] == "100"
    error = refused(guard, alice, prompt_tokens=100, max_tokens=100)
    assert error.headers["Retry-After"] == "6"
    assert error.headers["x-ratelimit-reset-tokens"] == "54s"
    permit.settle(150)
    permit.release()
    assert guard.admit(alice, prompt_tokens=1).headers["x-ratelimit-remaining-tokens"] == "849"


def test_a_request_refused_for_its_tokens_costs_no_request_and_is_not_open(guard):
    alice = caller(requests_per_minute=10, tokens_per_minute=100, max_concurrency=1)
    guard.admit(alice, prompt_tokens=90).release()
    for _ in range(20):
        assert refused(guard, alice, prompt_tokens=50).headers["x-ratelimit-remaining-requests"] == "9"
    assert guard.open_requests == 0
    assert guard.admit(alice, prompt_tokens=5).headers["x-ratelimit-remaining-requests"] == "8"


def test_an_answer_longer_than_the_budget_may_begin_and_is_paid_off_afterwards(guard, clock):
    alice = caller(tokens_per_minute=600)
    permit = guard.admit(alice, prompt_tokens=100, max_tokens=32_000)
    assert permit.headers["x-ratelimit-remaining-tokens"] == "0"
    permit.settle(1100)
    permit.release()
    assert refused(guard, alice, prompt_tokens=100).headers["Retry-After"] == "60"
    clock.now += 60.0
    guard.admit(alice, prompt_tokens=100)


def test_a_prompt_longer_than_the_budget_is_told_that_waiting_is_useless(guard):
    alice = caller(requests_per_minute=5, tokens_per_minute=600)
    error = refused(guard, alice, prompt_tokens=601)
    assert (error.status, error.headers["x-should-retry"]) == (429, "false")
    assert guard.admit(alice, prompt_tokens=600).headers["x-ratelimit-remaining-requests"] == "4"


def test_going_away_before_anything_was_settled_pays_the_whole_reservation(guard):
    alice = caller(tokens_per_minute=1000)
    with guard.admit(alice, prompt_tokens=100, max_tokens=800):
        pass
    refused(guard, alice, prompt_tokens=200)


def test_a_count_below_nothing_is_nothing(guard):
    alice = caller(tokens_per_minute=1000)
    permit = guard.admit(alice, prompt_tokens=500)
    permit.settle(-10_000)
    assert guard.admit(alice).headers["x-ratelimit-remaining-tokens"] == "1000"


def test_the_last_count_is_what_is_charged(guard):
    alice = caller(tokens_per_minute=1000)
    permit = guard.admit(alice, prompt_tokens=10, max_tokens=490)
    for tokens in (20, 300, 50):
        permit.settle(tokens)
    assert guard.admit(alice).headers["x-ratelimit-remaining-tokens"] == "950"


def test_open_requests_of_a_key_are_capped_until_one_is_released(guard):
    alice = caller(max_concurrency=2)
    first, _second = guard.admit(alice), guard.admit(alice)
    error = refused(guard, alice)
    assert (error.status, error.headers["Retry-After"]) == (429, "1")
    first.release()
    first.release()
    guard.admit(alice)
    refused(guard, alice)


def test_a_full_gateway_is_a_503_for_everybody(clock):
    guard = Guard(MemoryLedger(clock), max_open_requests=2)
    anybody = Caller(name="anonymous", tenant="")
    permits = [guard.admit(anybody), guard.admit(caller("alice", requests_per_minute=5))]
    error = refused(guard, anybody)
    assert (error.status, error.kind, error.code) == (503, "server_error", "overloaded")
    permits[0].release()
    permits[0].release()
    guard.admit(anybody)
    refused(guard, anybody)


async def test_a_cancelled_request_is_closed(guard):
    alice = caller(max_concurrency=1)
    entered = asyncio.Event()

    async def request() -> None:
        with guard.admit(alice):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(request())
    await entered.wait()
    refused(guard, alice)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert guard.open_requests == 0
    guard.admit(alice)


def test_a_key_without_limits_has_no_headers(guard):
    permit = guard.admit(Caller(name="a", tenant="a"), prompt_tokens=10**9)
    permit.settle(5)
    assert permit.headers == {}


def test_limits_changed_in_the_keys_file_hold_for_the_next_request(guard):
    guard.admit(caller(requests_per_minute=100))
    assert guard.admit(caller(requests_per_minute=3)).headers["x-ratelimit-remaining-requests"] == "2"


class ExactKey:
    """The same promises, computed without rounding."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = Fraction(limits.requests_per_minute or 0)
        self.tokens = Fraction(limits.tokens_per_minute or 0)
        self.open = 0

    def pass_time(self, seconds: Fraction) -> None:
        for name, most in (
            ("requests", self.limits.requests_per_minute),
            ("tokens", self.limits.tokens_per_minute),
        ):
            if most:
                setattr(self, name, min(Fraction(most), getattr(self, name) + seconds * most / 60))

    def admits(self, prompt: int, answer: int) -> bool:
        limits = self.limits
        if limits.max_concurrency and self.open >= limits.max_concurrency:
            return False
        if limits.requests_per_minute and self.requests < 1:
            return False
        budget = limits.tokens_per_minute
        return not budget or (prompt <= budget and min(prompt + answer, budget) <= self.tokens)

    def take(self, prompt: int, answer: int) -> int:
        self.open += 1
        if self.limits.requests_per_minute:
            self.requests -= 1
        budget = self.limits.tokens_per_minute
        taken = min(prompt + answer, budget) if budget else 0
        self.tokens -= taken
        return taken


steps = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 800), st.just(0)),
    st.tuples(st.just("admit"), st.integers(0, 300), st.integers(0, 300)),
    st.tuples(st.just("end"), st.integers(0, 50), st.integers(-5, 900)),
    st.tuples(st.just("leave"), st.integers(0, 50), st.just(0)),
)
some = st.none() | st.integers(1, 20)


@settings(max_examples=300)
@given(
    st.builds(Limits, some, st.none() | st.integers(1, 600), some),
    st.lists(steps, max_size=60),
)
def test_admission_follows_the_exact_model(limits, steps):
    clock = Clock()
    guard = Guard(MemoryLedger(clock), max_open_requests=1000)
    who = Caller(name="alice", tenant="alice", limits=limits)
    exact = ExactKey(limits)
    permits: list[tuple[Permit, int]] = []
    for what, first, second in steps:
        if what == "wait":
            clock.now += first / 8
            exact.pass_time(Fraction(first, 8))
        elif what == "admit":
            try:
                permit = guard.admit(who, prompt_tokens=first, max_tokens=second)
            except ApiError as error:
                assert error.status == 429
                assert not exact.admits(first, second)
            else:
                assert exact.admits(first, second)
                permits.append((permit, exact.take(first, second)))
        elif permits:
            permit, taken = permits.pop(first % len(permits))
            if what == "end":
                permit.settle(second)
                if limits.tokens_per_minute:
                    left = exact.tokens + taken - max(0, second)
                    exact.tokens = min(Fraction(limits.tokens_per_minute), left)
            permit.release()
            exact.open -= 1
        assert guard.open_requests == len(permits) == exact.open


def test_admission_without_limits_costs_next_to_nothing():
    guard, who = Guard(MemoryLedger(), max_open_requests=10), Caller(name="a", tenant="a")
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(1000):
            permit = guard.admit(who, prompt_tokens=10, max_tokens=10)
            permit.settle(15)
            permit.release()
        best = min(best, (time.perf_counter() - started) / 1000)
    assert best < 5e-6
