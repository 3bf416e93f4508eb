"""Long prompts are limited in number, short ones by the tokens of a step."""

from __future__ import annotations

import pytest

from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_engine.scheduler.prompts_under_way import PromptsUnderWay
from rhizome_engine.scheduler.request import Request


def prompt(num_tokens, tenant=""):
    return Request("a", [1] * num_tokens, tenant=tenant)


def fill(under_way, num_tokens, tenant=""):
    """How many prompts start before it is full for the next one."""
    count = 0
    while not under_way.is_full_for(request := prompt(num_tokens, tenant)):
        under_way.add(request)
        count += 1
        assert count < 1000
    return count


@pytest.mark.parametrize(
    ("num_tokens", "count"),
    [(1000, 4), (128, 4), (127, 5), (50, 11), (8, 64), (1, 512)],
)
def test_so_many_start_as_fill_a_step_and_at_least_the_limit(num_tokens, count):
    config = SchedulerConfig(max_step_tokens=512, max_partial_prefills=4)
    assert fill(PromptsUnderWay(config, [], 0), num_tokens) == count


def test_tokens_of_those_that_decode_are_not_free():
    config = SchedulerConfig(max_step_tokens=100, max_partial_prefills=2)
    assert fill(PromptsUnderWay(config, [], 60), 10) == 4


def test_a_capped_prompt_takes_its_cap_only():
    config = SchedulerConfig(max_step_tokens=100, max_partial_prefills=2, max_chunk_tokens=20)
    assert fill(PromptsUnderWay(config, [], 0), 1000) == 5


def test_what_is_left_of_running_prompts_counts():
    config = SchedulerConfig(max_step_tokens=100, max_partial_prefills=2)
    running = [(prompt(500), 30), (prompt(500), 40)]
    assert fill(PromptsUnderWay(config, running, 0), 10) == 3


def test_one_that_had_to_go_leaves_its_tokens():
    config = SchedulerConfig(max_step_tokens=100, max_partial_prefills=1)
    long = prompt(200)
    under_way = PromptsUnderWay(config, [(long, 200)], 0)
    assert under_way.is_full_for(prompt(10))
    under_way.discard(prompt(7))
    assert under_way.is_full_for(prompt(10)) and len(under_way) == 1
    under_way.discard(long)
    assert not under_way.is_full_for(prompt(10)) and len(under_way) == 0


def test_a_tenant_without_one_may_always_add_one():
    config = SchedulerConfig(max_step_tokens=10, max_partial_prefills=1)
    under_way = PromptsUnderWay(config, [(prompt(200, "large"), 200)], 0)
    assert under_way.is_full_for(prompt(10, "large"))
    assert fill(under_way, 10, "small") == 1
    shared = SchedulerConfig(max_step_tokens=10, max_partial_prefills=1, fairness=False)
    assert fill(PromptsUnderWay(shared, [(prompt(200, "large"), 200)], 0), 10, "small") == 0
