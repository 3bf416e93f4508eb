"""Log probabilities of prompt tokens: of each one once, in order, whatever happens to the request."""

from __future__ import annotations

import pytest

from rhizome_engine.scheduler.request import FinishReason
from rhizome_testing.hash_runner import expected_tokens

PROMPT = list(range(10, 20))
LONG = [(7 * place) % 1000 for place in range(200)]


def distinct(number, count):
    return [(number * 31 + place * (number + 3)) % 1000 for place in range(count)]


def assert_text(h, name, prompt, max_tokens):
    assert h.tokens[name] == expected_tokens(prompt, max_tokens)
    assert h.ended[name].reason is FinishReason.LENGTH


def assert_scored(h, name, prompt):
    assert [-score.logprob for score in h.scores[name]] == prompt[1:]


@pytest.mark.parametrize("max_tokens", [0, 1, 6])
@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_with_the_prefix_cached(any_harness, max_tokens, chunk):
    h = any_harness(max_step_tokens=chunk)
    h.generate("warm", LONG[:40], 3)
    h.add("a", LONG[:50], max_tokens=max_tokens, prompt_logprobs=2)
    h.finish()
    assert_scored(h, "a", LONG[:50])
    assert all(len(score.top) == 2 for score in h.scores["a"])
    assert_text(h, "a", LONG[:50], max_tokens)


def test_beside_one_that_computes_the_same_prompt(any_harness):
    h = any_harness(num_pages=400, max_step_tokens=64)
    h.add("plain", LONG, max_tokens=2)
    h.add("scored", LONG, max_tokens=2, prompt_logprobs=0)
    h.finish()
    assert_scored(h, "scored", LONG)
    assert_text(h, "scored", LONG, 2)
    assert_text(h, "plain", LONG, 2)


def test_through_preemption_in_the_prompt_and_behind_it(any_harness):
    h = any_harness(num_pages=20, page_size=4, max_step_tokens=12)
    prompts = {str(number): distinct(number, 30) for number in range(4)}
    for name, prompt in prompts.items():
        h.add(name, prompt, max_tokens=24, prompt_logprobs=1)
    h.finish(max_steps=600)
    assert h.core.load().totals.preemptions > 0
    for name, prompt in prompts.items():
        assert_scored(h, name, prompt)
        assert_text(h, name, prompt, 24)


def test_those_of_resumed_output_are_not_told(any_harness):
    h = any_harness()
    output = expected_tokens(PROMPT, 6)
    h.add("a", [*PROMPT, *output], max_tokens=9, resumed_tokens=6, prompt_logprobs=0)
    h.finish()
    assert_scored(h, "a", PROMPT)
    assert h.tokens["a"] == expected_tokens(PROMPT, 9)[6:]


def test_a_prompt_of_one_token_has_none(any_harness):
    h = any_harness()
    h.add("a", [5], max_tokens=2, prompt_logprobs=3)
    h.finish()
    assert h.scores["a"] == [] and h.tokens["a"] == expected_tokens([5], 2)
