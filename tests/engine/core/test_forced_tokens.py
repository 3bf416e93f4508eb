"""Tokens that a grammar dictates, by a grammar that is a script, while steps are under way or not."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from rhizome_engine.batch import TokenMasks
from rhizome_engine.core import constraints
from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import TokensEvent
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.request import FinishReason
from rhizome_testing.hash_runner import expected_tokens

PROMPT = list(range(10, 20))
OTHER = list(range(300, 312))


class ScriptedMatcher:
    """Allows everything, and forces tokens at given lengths of the output."""

    def __init__(self, forced, end):
        self.accepted = []
        self._forced = forced
        self._end = end

    @property
    def is_finished(self):
        return self._end is not None and len(self.accepted) >= self._end

    def accept(self, token_id):
        self.accepted.append(token_id)

    def accept_all(self, token_ids):
        self.accepted += token_ids

    def forced_tokens(self, limit):
        return self._forced.get(len(self.accepted), [])[:limit]


class ScriptedCompiler:
    """Takes grammars that are pairs: tokens forced by length of the output, and the length where it ends."""

    def compile(self, grammar):
        compiled: Future = Future()
        compiled.set_result(self)
        self.matcher = lambda: ScriptedMatcher(*grammar)
        return compiled


def text_with(prompt, forced, count):
    """What comes out when nothing goes wrong."""
    output = []
    while len(output) < count:
        output.append(expected_tokens([*prompt, *output], 1)[0])
        output += forced.get(len(output), [])[: count - len(output)]
    return output


@pytest.fixture
def constrained(any_harness, monkeypatch):
    """A harness whose grammars are scripts."""

    def allow_all(matchers, vocab_size):
        rows = np.array([row for row, _ in matchers], np.int64)
        return TokenMasks(rows, np.full((len(rows), (vocab_size + 31) // 32), -1, np.int32))

    monkeypatch.setattr(constraints, "fill_masks", allow_all)

    def make(eos=(), **settings):
        h = any_harness(eos=eos, **settings)
        config = SchedulerConfig(overlap=any_harness.keywords["overlap"], **_without_pool(settings))
        h.core = EngineCore(h.runner, config, eos, clock=h.clock, grammars=ScriptedCompiler())
        return h

    return make


def _without_pool(settings):
    return {name: value for name, value in settings.items() if name not in ("num_pages", "page_size")}


@pytest.mark.parametrize(
    "forced",
    [
        {1: [5]},
        {1: [5, 6, 7]},
        {2: [9] * 9},
        {1: [1], 3: [2], 5: [3]},
        {1: [1, 2], 4: [3, 4], 8: [5]},
        {},
    ],
    ids=str,
)
def test_they_come_out_in_their_places(constrained, forced):
    h = constrained()
    h.add("a", PROMPT, max_tokens=14, grammar=(forced, None))
    h.add("free", OTHER, max_tokens=14)
    h.finish()
    assert h.tokens["a"] == text_with(PROMPT, forced, 14)
    assert h.tokens["free"] == expected_tokens(OTHER, 14)
    usage = h.ended["a"].usage
    assert usage.forced_tokens == sum(map(len, forced.values())) and usage.completion_tokens == 14
    assert h.ended["a"].reason is FinishReason.LENGTH
    h.assert_totals_agree()


def test_they_need_no_step_each(constrained):
    h = constrained()
    h.add("a", PROMPT, max_tokens=32, grammar=({1: list(range(30))}, None))
    h.finish(max_steps=6)
    assert h.tokens["a"] == text_with(PROMPT, {1: list(range(30))}, 32)


@pytest.mark.parametrize("count", range(2, 9))
def test_they_end_with_max_tokens(constrained, count):
    forced = {1: [4, 5, 6, 7, 8, 9, 10, 11, 12]}
    h = constrained()
    h.add("a", PROMPT, max_tokens=count, grammar=(forced, None))
    h.finish()
    assert h.tokens["a"] == text_with(PROMPT, forced, count)
    assert h.ended["a"].usage.completion_tokens == count
    assert h.ended["a"].reason is FinishReason.LENGTH
    h.assert_totals_agree()


@pytest.mark.parametrize("place", range(4))
def test_a_stop_token_among_them_ends_the_request(constrained, place):
    forced = [4, 5, 6, 7]
    h = constrained()
    h.add("a", PROMPT, max_tokens=20, grammar=({2: forced}, None), stop_token_ids=[forced[place]])
    h.add("free", OTHER, max_tokens=9)
    h.finish()
    assert h.tokens["a"] == text_with(PROMPT, {2: forced}, 2 + place)
    end = h.ended["a"]
    assert (end.reason, end.stop_token_id) == (FinishReason.STOP, forced[place])
    assert (end.usage.completion_tokens, end.usage.forced_tokens) == (3 + place, 1 + place)
    assert h.tokens["free"] == expected_tokens(OTHER, 9)
    h.assert_totals_agree()


def test_a_grammar_that_is_finished_ends_the_request(constrained):
    h = constrained()
    h.add("a", PROMPT, max_tokens=20, grammar=({3: [8, 9]}, 5))
    h.finish()
    assert h.tokens["a"] == text_with(PROMPT, {3: [8, 9]}, 5)
    assert h.ended["a"].reason is FinishReason.STOP and h.ended["a"].stop_token_id is None
    assert h.ended["a"].usage.completion_tokens == 5
    h.assert_totals_agree()


def test_log_probabilities_need_a_step_for_each_token(constrained):
    h = constrained()
    h.add("a", PROMPT, SamplingParams(top_logprobs=1), max_tokens=6, grammar=({1: [5, 6]}, None))
    events = []
    while h.core.has_work:
        events += [event for event in h.step() if isinstance(event, TokensEvent)]
    assert all(len(event.token_ids) == len(event.logprobs) == 1 for event in events)
    assert h.tokens["a"] == expected_tokens(PROMPT, 6) and h.ended["a"].usage.forced_tokens == 0


@pytest.mark.parametrize("pages", range(9, 24, 2))
def test_they_survive_preemption(constrained, pages):
    forced = {1: [1, 2, 3], 6: [4, 5], 9: [6] * 5}
    h = constrained(num_pages=pages, page_size=2, max_step_tokens=8)
    for number in range(5):
        h.add(str(number), [number, 50, 60], max_tokens=15, grammar=(forced, None))
    h.finish(max_steps=500)
    for number in range(5):
        assert h.tokens[str(number)] == text_with([number, 50, 60], forced, 15)
        assert h.ended[str(number)].usage.forced_tokens == 10
    if pages < 15:
        assert h.core.load().totals.preemptions > 0
    h.assert_totals_agree()


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_cancel_among_them_leaves_nothing_wrong(constrained, steps):
    forced = {1: [1, 2, 3], 5: [4, 5], 8: [6] * 5}
    h = constrained(page_size=1)
    h.add("a", PROMPT, max_tokens=20, grammar=(forced, None))
    for _ in range(steps):
        h.step()
    h.core.cancel("a")
    h.finish()
    got = h.tokens["a"]
    assert got == text_with(PROMPT, forced, 20)[: len(got)]
    assert h.ended["a"].usage.completion_tokens == len(got)
    turn = [*PROMPT, *got, 3]
    assert h.generate("b", turn, 5) == expected_tokens(turn, 5)
    h.assert_totals_agree()


def test_those_that_were_resumed_are_followed_and_not_forced_again(constrained):
    forced = {2: [7, 8, 9]}
    before = text_with(PROMPT, forced, 5)
    h = constrained()
    h.add("a", [*PROMPT, *before], max_tokens=9, resumed_tokens=5, grammar=(forced, None))
    h.finish()
    assert h.tokens["a"] == text_with(PROMPT, forced, 9)[5:]
    assert h.ended["a"].usage.forced_tokens == 0
