"""The engine core with a host tier: the same answers, fewer tokens computed, whatever happens meanwhile."""

from __future__ import annotations

import random

import pytest

from rhizome_engine.core.engine_core import EngineCore
from rhizome_engine.core.events import FailedEvent
from rhizome_engine.core.reports import to_cache_stats
from rhizome_engine.scheduler.config import SchedulerConfig
from rhizome_testing.hash_runner import HashRunner, expected_tokens

HOST_PAGES = 200


@pytest.fixture(params=[False, True], ids=["in_turn", "overlap"])
def tiered(request, harness):
    """A harness whose core has a small pool and a host tier."""

    def make(num_pages=24, host_pages=HOST_PAGES, **config):
        h = harness(num_pages=num_pages)
        h.runner = HashRunner(num_pages, 4, num_host_pages=host_pages)
        h.core = EngineCore(
            h.runner,
            SchedulerConfig(overlap=request.param, **config),
            clock=h.clock,
            num_host_pages=host_pages,
        )
        return h

    return make


def computed_tokens(h):
    return sum(sum(batch) for batch in h.runner.batches)


def conversations(count, length):
    draw = random.Random(7)
    return [[draw.randrange(1000) for _ in range(length)] for _ in range(count)]


def talk(h, prompts, rounds=3):
    """Each conversation in turn, each turn with the answer to the one before."""
    prompts = [list(prompt) for prompt in prompts]
    for turn in range(rounds):
        for number, prompt in enumerate(prompts):
            answer = h.generate(f"{turn}-{number}", prompt, 6)
            assert answer == expected_tokens(prompt, 6)
            prompt += [*answer, turn]
    h.assert_totals_agree()


def test_conversations_that_do_not_fit_the_pool_are_not_computed_again(tiered):
    prompts = conversations(8, 40)
    with_tier, without = tiered(), tiered(host_pages=0)
    talk(with_tier, prompts)
    talk(without, prompts)
    loaded = with_tier.core.load().totals.host_loaded_tokens
    assert loaded > 8 * 2 * 36
    assert computed_tokens(without) - computed_tokens(with_tier) >= loaded - 8 * 4
    assert with_tier.core.load().host_pages_cached > 24 and without.core.load().host_pages_total == 0
    assert without.core.host_stats() is None
    assert with_tier.core.host_stats()[""].hit_tokens == loaded


def test_tokens_that_come_back_are_told_as_cached(tiered):
    h = tiered(num_pages=12)
    first, second = conversations(2, 40)
    h.generate("a", first, 1)
    h.generate("b", second, 1)
    h.generate("c", first, 1)
    assert h.ended["c"].usage.cached_tokens == h.started["c"].cached_tokens == 39
    assert h.core.load().totals.host_loaded_tokens > 0


def test_requests_that_begin_alike_load_their_beginning_once(tiered):
    h = tiered(num_pages=40, max_batch_size=8)
    system = conversations(1, 80)[0]
    h.generate("first", system, 1)
    h.generate("other", list(range(159)), 1)
    for number in range(5):
        h.add(f"{number}", [*system, number], max_tokens=2)
    h.finish()
    for number in range(5):
        assert h.tokens[f"{number}"] == expected_tokens([*system, number], 2)
    assert h.core.load().totals.host_loaded_tokens == 80


def test_the_longest_found_prefix_goes_first_whichever_tier_has_it(tiered):
    h = tiered(num_pages=12, policy="lpm", max_batch_size=1)
    on_host, new = conversations(2, 40)
    h.generate("before", on_host, 1)
    h.generate("after", list(range(40)), 1)
    h.add("new", new, max_tokens=1)
    h.add("known", on_host, max_tokens=1)
    h.finish()
    assert list(h.ended) == ["before", "after", "known", "new"]


def test_a_flush_leaves_nothing_in_either_tier(tiered):
    h = tiered()
    talk(h, conversations(8, 40), rounds=1)
    assert h.core.load().host_pages_cached > 0
    h.core.flush_cache()
    h.core.check_conservation()
    assert h.core.load().host_pages_cached == 0
    before = h.core.load().totals
    talk_again = conversations(1, 40)[0]
    h.generate("again", talk_again, 2)
    assert h.ended["again"].usage.cached_tokens == 0
    assert h.core.load().totals.host_saved_tokens == before.host_saved_tokens


def test_a_pinned_prefix_stays_on_the_device(tiered):
    h = tiered()
    prompt, *others = conversations(8, 40)
    h.generate("warm", prompt, 0)
    h.core.pin_prefix("", prompt[:20])
    talk(h, others, rounds=1)
    (part,) = [part for part in h.core.cache_survey.newest(1000).parts[""] if part.locks]
    assert part.key.tolist() == prompt[:20] and h.core.cache_survey.pinned(part)
    assert h.generate("again", prompt, 6) == expected_tokens(prompt, 6)


def test_a_preempted_request_gets_back_what_was_evicted_meanwhile(tiered):
    h = tiered(num_pages=16, max_batch_size=4, fairness=False)
    prompts = conversations(4, 16)
    for number, prompt in enumerate(prompts):
        h.add(f"{number}", prompt, max_tokens=30)
    h.finish()
    for number, prompt in enumerate(prompts):
        assert h.tokens[f"{number}"] == expected_tokens(prompt, 30)
    totals = h.core.load().totals
    assert totals.preemptions > 0 and totals.host_loaded_tokens > 0


def test_prompts_whose_hidden_states_are_wanted_load_nothing(tiered):
    h = tiered(num_pages=12)
    first, second = conversations(2, 40)
    for name, prompt in (("a", first), ("b", second)):
        h.generate(name, prompt, 1)
    h.add("scores", first, max_tokens=1, prompt_logprobs=0)
    h.finish()
    assert len(h.scores["scores"]) == 39 and h.ended["scores"].usage.cached_tokens == 0
    assert h.core.load().totals.host_loaded_tokens == 0


@pytest.mark.parametrize("fails_at", ["fail_next", "fail_next_launch", "fail_next_sample"])
def test_after_a_step_with_copies_failed_nothing_is_taken_from_the_host(tiered, fails_at):
    h = tiered(num_pages=12)
    first, second = conversations(2, 40)
    h.generate("a", first, 1)
    h.runner.drop_copies = True
    setattr(h.runner, fails_at, 1)
    h.add("b", second, max_tokens=1)  # its first step saves what "a" left
    h.finish()
    assert isinstance(h.ended["b"], FailedEvent)
    assert h.core.load().host_pages_cached == 0
    h.runner.drop_copies = False
    assert h.generate("c", first, 4) == expected_tokens(first, 4)


def test_whoever_loads_what_a_failed_step_was_to_save_fails_with_it(harness):
    h = harness()
    h.runner = HashRunner(14, 4, num_host_pages=HOST_PAGES)
    config = SchedulerConfig(overlap=True, max_batch_size=4)
    h.core = EngineCore(h.runner, config, clock=h.clock, num_host_pages=HOST_PAGES)
    first, second = conversations(2, 20)
    h.generate("a", first, 1)
    h.generate("b", second, 1)
    h.runner.drop_copies, h.runner.fail_next = True, 1
    h.add("c", list(range(28)), max_tokens=4)
    h.step()  # saves some of "a", in vain
    h.add("d", first, max_tokens=4)
    h.step()  # "d" is launched before that is known
    h.finish()
    assert isinstance(h.ended["c"], FailedEvent)
    assert isinstance(h.ended["d"], FailedEvent) and h.core.load().totals.host_loaded_tokens > 0
    assert h.generate("e", first, 4) == expected_tokens(first, 4)


def test_what_a_failed_step_was_to_load_is_found_by_nobody_though_its_request_was_cancelled(harness):
    h = harness()
    h.runner = HashRunner(14, 4, num_host_pages=HOST_PAGES)
    h.core = EngineCore(h.runner, SchedulerConfig(overlap=True), clock=h.clock, num_host_pages=HOST_PAGES)
    first, second = conversations(2, 40)
    h.generate("a", first, 1)
    h.generate("b", second, 1)
    h.runner.drop_copies, h.runner.fail_next = True, 1
    h.add("c", first, max_tokens=4)
    h.step()
    h.core.cancel("c")
    h.finish()
    h.runner.drop_copies = False
    assert h.generate("d", first, 4) == expected_tokens(first, 4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("host_pages", [5, 30, 200])
def test_anything_in_any_order_gives_the_same_answers(tiered, seed, host_pages):
    draw = random.Random(seed)
    h = tiered(num_pages=draw.choice([12, 20]), host_pages=host_pages, max_batch_size=4, max_step_tokens=24)
    stems = conversations(5, 30)
    h.runner.drop_copies = True
    prompts = {}
    for number in range(120):
        stem = draw.choice(stems)
        prompt = stem[: draw.randint(1, 30)] + [draw.randrange(3) for _ in range(draw.randint(0, 6))]
        prompts[f"{number}"] = prompt
        namespace = draw.choice(["", "", "tenant"])
        h.add(f"{number}", prompt, max_tokens=draw.randint(0, 8), namespace=namespace)
        for _ in range(draw.randint(0, 6)):
            h.step()
        chance = draw.random()
        if chance < 0.1:
            h.core.cancel(f"{draw.randrange(number + 1)}")
        elif chance < 0.15:
            setattr(h.runner, draw.choice(["fail_next", "fail_next_launch", "fail_next_sample"]), 1)
        elif chance < 0.18:
            h.core.flush_cache(draw.choice([None, "tenant"]))
    h.finish()
    for name, prompt in prompts.items():
        tokens = h.tokens[name]
        assert tokens == expected_tokens(prompt, len(tokens))
    totals = h.core.load().totals
    assert totals.host_loaded_tokens > 0 and totals.failed > 0 and totals.completed > 80


def test_statistics_tell_the_tiers_apart(tiered):
    h = tiered(num_pages=12)
    first, second = conversations(2, 40)
    for name, prompt in (("a", first), ("b", second), ("c", first)):
        h.generate(name, prompt, 1)
    stats = to_cache_stats(h.core.cache_stats(), h.core.host_stats())
    assert stats.total.tokens_saved == 39 and stats.host_total.hits == 1
    loaded = h.core.load().totals.host_loaded_tokens
    assert stats.host_total.tokens_saved == stats.host_namespaces[0].tokens_saved == loaded
    assert stats.host_total.stored_pages * 4 == h.core.load().totals.host_saved_tokens
    assert stats.host_total.cached_pages == h.core.load().host_pages_cached
    without = to_cache_stats(h.core.cache_stats())
    assert not without.HasField("host_total") and not without.host_namespaces
