"""Requests end in every state, once, with counts that agree with the engine's totals."""

from __future__ import annotations

from concurrent.futures import Future

import grpc
import pytest

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent, FinishedEvent
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import FinishReason
from rhizome_grammar.errors import GrammarError
from rhizome_testing.hash_runner import expected_tokens
from rhizome_transport.errors import EngineError

PROMPT = list(range(10, 20))


def distinct(number, count):
    return [(number * 31 + place * (number + 3)) % 1000 for place in range(count)]


def assert_text(h, name, prompt, max_tokens):
    assert h.tokens[name] == expected_tokens(prompt, max_tokens)
    assert h.ended[name].reason is FinishReason.LENGTH


class ManualCompiler:
    """Compiles when the test says so."""

    def __init__(self):
        self.futures = []

    def compile(self, grammar):
        self.futures.append(Future())
        return self.futures[-1]


@pytest.fixture
def preparing(harness):
    """A harness with a request whose grammar is being compiled."""

    def make(**settings):
        h = harness()
        compiler = ManualCompiler()
        h.core = EngineCore(h.runner, SchedulerConfig(), clock=h.clock, grammars=compiler)
        h.add("constrained", PROMPT, max_tokens=4, grammar=object(), **settings)
        return h, compiler.futures[0]

    return make


class TestPreparing:
    def test_there_is_nothing_to_do_and_others_are_served(self, preparing):
        h, _ = preparing()
        assert h.core.has_work and not h.core.is_runnable
        assert h.step() == [] and h.core.load().waiting_requests == 1
        h.add("free", PROMPT, max_tokens=2)
        assert h.core.is_runnable
        while "free" not in h.ended:
            h.step()
        assert "constrained" not in h.started

    def test_it_can_be_cancelled(self, preparing):
        h, future = preparing()
        assert h.core.cancel("constrained")
        h.step()
        assert h.ended["constrained"].reason is FinishReason.CANCELLED and not h.core.has_work
        future.set_exception(GrammarError("too late to matter"))
        assert h.step() == []
        h.assert_totals_agree()

    def test_its_deadline_counts(self, preparing):
        h, _ = preparing(deadline=105.0)
        assert h.step(4.9) == []
        h.step(0.2)
        assert h.ended["constrained"].error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert h.core.load().totals.expired == 1 and not h.core.has_work
        h.assert_totals_agree()

    def test_a_grammar_that_cannot_be_compiled_fails_its_request_only(self, preparing):
        h, future = preparing()
        h.add("free", PROMPT, max_tokens=2)
        future.set_exception(GrammarError("the schema is too deep"))
        h.finish()
        error = h.ended["constrained"].error
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT and "too deep" in str(error)
        assert_text(h, "free", PROMPT, 2)
        h.assert_totals_agree()

    def test_its_peer_may_go(self, preparing):
        h, future = preparing(peer="gone")
        assert len(h.core.drop_peer("gone")) == 1 and not h.core.has_work
        future.set_exception(GrammarError("nobody listens"))
        assert h.step() == []

    def test_it_counts_for_the_bound_of_the_queue(self, preparing):
        h, _ = preparing()
        for number in range(256 + 32 - 1):
            h.add(str(number), PROMPT, max_tokens=1)
        with pytest.raises(EngineError, match="288 requests wait already"):
            h.add("one more", PROMPT)

    def test_without_a_compiler_it_is_refused(self, harness):
        h = harness()
        with pytest.raises(EngineError, match="takes no grammars"):
            h.add("a", PROMPT, grammar=object())
        assert not h.core.has_work and h.core.load().totals.received == 0


class TestEnds:
    def test_deadlines_of_those_that_wait_run_or_were_preempted(self, any_harness):
        h = any_harness(num_pages=12, page_size=4, max_batch_size=3)
        h.add("old", distinct(1, 8), max_tokens=30)
        h.add("preempted", distinct(2, 8), max_tokens=30, deadline=h.clock.now + 40)
        h.add("waiting", distinct(3, 30), max_tokens=3, deadline=h.clock.now + 3)
        while not h.core.load().totals.preemptions:
            h.step(1.0)
        assert h.ended["waiting"].error.code is grpc.StatusCode.DEADLINE_EXCEEDED
        h.step(60.0)
        end = h.ended["preempted"]
        assert end.error.code is grpc.StatusCode.DEADLINE_EXCEEDED and end.usage.preemptions == 1
        got = h.tokens["preempted"]
        assert got == expected_tokens(distinct(2, 8), len(got)) and end.usage.completion_tokens == len(got)
        h.finish()
        assert_text(h, "old", distinct(1, 8), 30)
        h.assert_totals_agree()

    def test_a_preempted_request_can_be_cancelled(self, any_harness):
        h = any_harness(num_pages=12, page_size=4)
        for name in "ab":
            h.add(name, distinct(ord(name), 8), max_tokens=30)
        while not h.core.load().totals.preemptions:
            h.step()
        assert h.core.cancel("b")
        h.core.check_conservation()
        h.finish()
        assert h.ended["b"].reason is FinishReason.CANCELLED
        assert h.tokens["b"] == expected_tokens(distinct(ord("b"), 8), len(h.tokens["b"]))
        assert h.ended["b"].usage.completion_tokens == len(h.tokens["b"])
        assert_text(h, "a", distinct(ord("a"), 8), 30)
        h.assert_totals_agree()

    @pytest.mark.parametrize("steps", range(1, 9))
    def test_cancel_after_any_step(self, any_harness, steps):
        """Three chunks of the prompt, then five tokens: in the last of these steps it would finish."""
        h = any_harness(max_step_tokens=16, max_batch_size=2)
        h.add("a", distinct(1, 40), max_tokens=5)
        for _ in range(steps):
            h.step()
        was_open = "a" not in h.ended
        assert h.core.cancel("a") == was_open
        h.core.check_conservation()
        h.finish()
        got = h.tokens["a"]
        assert got == expected_tokens(distinct(1, 40), len(got))
        assert h.ended["a"].usage.completion_tokens == len(got)
        assert h.ended["a"].reason is (FinishReason.CANCELLED if was_open else FinishReason.LENGTH)
        assert h.generate("b", distinct(1, 40), 5) == expected_tokens(distinct(1, 40), 5)
        h.assert_totals_agree()

    def test_totals_agree_after_all_kinds_of_ends(self, any_harness):
        h = any_harness(num_pages=40, page_size=4, max_batch_size=6, max_step_tokens=32)
        for number in range(24):
            h.add(
                str(number),
                distinct(number % 9, 12 + number % 7),
                max_tokens=number % 11,
                deadline=h.clock.now + 7 if number % 5 == 4 else None,
                tenant=str(number % 3),
            )
        for step in range(12):
            h.step(1.0)
            h.core.cancel(str(2 * step + 1))
        h.runner.fail_next = 1
        h.step(1.0)
        h.finish()
        totals = h.core.load().totals
        assert min(totals.completed, totals.aborted, totals.expired, totals.failed) > 0
        assert totals.preemptions > 0 or totals.cache_hit_tokens > 0
        h.assert_totals_agree()
        for number in range(24):
            got = h.tokens[str(number)]
            assert got == expected_tokens(distinct(number % 9, 12 + number % 7), len(got))


def test_cached_tokens_of_a_resumed_request_are_those_of_its_prompt(any_harness):
    h = any_harness()
    answer = h.generate("before", PROMPT, 30)
    h.add("resumed", [*PROMPT, *answer[:20]], max_tokens=30, resumed_tokens=20)
    h.finish()
    assert h.tokens["resumed"] == answer[20:]
    usage = h.ended["resumed"].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (10, 30, 10)
    h.assert_totals_agree()


def test_ends_are_told_once(any_harness):
    h = any_harness()
    h.add("a", PROMPT, max_tokens=3)
    kinds = []
    while h.core.has_work:
        kinds += [type(event) for event in h.step()]
    assert kinds.count(FinishedEvent) == 1 and FailedEvent not in kinds
    assert h.step() == []  # with overlap a wasted step may have been under way
