"""Who is served when, and that the text is right whatever was scheduled."""

from __future__ import annotations

import grpc
import pytest

from rhizome_engine.scheduler.request import FinishReason
from rhizome_testing.hash_runner import expected_tokens
from rhizome_transport.errors import EngineError

PROMPT = list(range(10, 20))
LONG = [(7 * place) % 1000 for place in range(200)]

policies = pytest.mark.parametrize("policy", ["fcfs", "lpm", "priority"])


def distinct(number, count):
    return [(number * 31 + place * (number + 3)) % 1000 for place in range(count)]


def assert_text(h, name, prompt, max_tokens):
    assert h.tokens[name] == expected_tokens(prompt, max_tokens)
    assert h.ended[name].reason is FinishReason.LENGTH


class TestMoreThanThePoolHolds:
    @policies
    @pytest.mark.parametrize("fairness", [True, False], ids=["fair", "unfair"])
    def test_200_requests_in_a_pool_for_20_all_get_their_text(self, any_harness, policy, fairness):
        h = any_harness(
            num_pages=200, max_batch_size=64, max_queue_size=300, policy=policy, fairness=fairness
        )
        prompts = [distinct(number, 8 + number % 12) for number in range(200)]
        for number, prompt in enumerate(prompts):
            h.add(str(number), prompt, max_tokens=20, tenant=f"t{number % 5}", priority=number % 3)
        # Twenty at a time, 21 steps each, is 210; what is computed again may cost as much once more.
        h.finish(max_steps=420)
        for number, prompt in enumerate(prompts):
            assert_text(h, str(number), prompt, 20)
        assert h.core.load().totals.preemptions > 0
        computed = sum(map(sum, h.runner.batches))
        assert computed <= 1.5 * sum(len(prompt) + 19 for prompt in prompts)
        h.assert_totals_agree()

    @pytest.mark.parametrize("pages", [1, 2, 3])
    def test_a_pool_of_hardly_a_page_serves_one_after_the_other(self, any_harness, pages):
        h = any_harness(num_pages=pages, page_size=4)
        for number in range(6):
            h.add(str(number), [number], max_tokens=3)
        h.finish(max_steps=60)
        for number in range(6):
            assert_text(h, str(number), [number], 3)

    @policies
    def test_one_token_per_page_and_per_step(self, any_harness, policy):
        h = any_harness(num_pages=12, page_size=1, max_step_tokens=1, max_batch_size=3, policy=policy)
        for number in range(5):
            h.add(str(number), distinct(number, 5), max_tokens=6, tenant=str(number % 2), priority=number % 2)
        h.finish(max_steps=400)
        for number in range(5):
            assert_text(h, str(number), distinct(number, 5), 6)

    @pytest.mark.parametrize("grows", [False, True], ids=["prompt", "output"])
    def test_a_request_that_needs_the_whole_pool_comes_before_pins(self, any_harness, grows):
        h = any_harness(num_pages=16, page_size=4)
        h.generate("warm", distinct(1, 16), 0)
        h.core.pin_prefix("", distinct(1, 16))
        prompt, count = (distinct(2, 40), 20) if grows else (distinct(2, 60), 3)
        h.add("large", prompt, max_tokens=count)
        h.add("small", PROMPT, max_tokens=3)
        h.finish(max_steps=200)
        assert_text(h, "large", prompt, count)
        assert_text(h, "small", PROMPT, 3)

    def test_small_requests_wait_behind_a_large_one_that_came_first(self, any_harness):
        h = any_harness(num_pages=16, page_size=4)
        h.add("running", distinct(1, 20), max_tokens=20)
        h.step()
        h.add("large", distinct(2, 50), max_tokens=2)
        for number in range(8):
            h.add(f"small {number}", distinct(3 + number, 4), max_tokens=2)
        h.finish(max_steps=100)
        first = min(h.ended[f"small {number}"].request.arrival_order for number in range(8))
        assert h.ended["large"].request.arrival_order < first
        assert list(h.ended).index("large") < list(h.ended).index("small 7")
        assert_text(h, "large", distinct(2, 50), 2)


class TestPartialPrefills:
    def test_two_prompts_are_computed_at_once(self, any_harness):
        h = any_harness(num_pages=400, max_step_tokens=40)
        h.add("a", distinct(1, 100), max_tokens=2)
        h.add("b", distinct(2, 100), max_tokens=2)
        h.step()
        assert h.runner.batches[0] == [20, 20]
        h.finish()
        assert_text(h, "a", distinct(1, 100), 2)
        assert_text(h, "b", distinct(2, 100), 2)

    def test_a_short_prompt_is_not_stuck_behind_a_long_one(self, any_harness):
        h = any_harness(num_pages=400, max_step_tokens=40)
        h.add("long", distinct(1, 600), max_tokens=2)
        h.step()
        h.add("short", distinct(2, 12), max_tokens=1)
        for _ in range(2):
            h.step()
        assert "short" in h.ended and not h.tokens["long"]
        h.finish()
        assert_text(h, "long", distinct(1, 600), 2)

    def test_one_prompt_gets_its_cap_of_a_step(self, any_harness):
        h = any_harness(num_pages=400, max_step_tokens=100, max_chunk_tokens=16)
        h.add("a", distinct(1, 60), max_tokens=1)
        h.add("b", distinct(2, 60), max_tokens=1)
        h.finish()
        assert h.runner.batches == [[16, 16]] * 3 + [[12, 12]]


class TestCommonPrefix:
    """A request whose prefix another one is computing waits for it, and takes it over."""

    @policies
    def test_a_prompt_of_many_requests_is_computed_once(self, any_harness, policy):
        h = any_harness(num_pages=400, max_step_tokens=64, policy=policy)
        for number in range(10):
            h.add(str(number), LONG, max_tokens=4)
        h.finish(max_steps=40)
        for number in range(10):
            assert_text(h, str(number), LONG, 4)
        # The last few tokens are not waited for, and everybody computes three tokens of output.
        assert sum(map(sum, h.runner.batches)) <= len(LONG) + 9 * 16 + 10 * 3
        assert h.core.load().totals.preemptions == 0
        cached = sorted(end.usage.cached_tokens for end in h.ended.values())
        assert cached[0] == 0 and cached[1] >= len(LONG) - 16

    @pytest.mark.parametrize("ending", ["cancel", "expire", "fail", "fail to launch"])
    def test_the_next_one_goes_on_where_the_first_one_ended(self, any_harness, ending):
        h = any_harness(num_pages=400, max_step_tokens=64)
        h.add("first", LONG, max_tokens=4, deadline=h.clock.now + 5)
        for number in range(5):
            h.add(str(number), LONG, max_tokens=4)
        for _ in range(2):
            h.step()
        assert set(h.started) == {"first"}
        match ending:
            case "cancel":
                h.core.cancel("first")
            case "expire":
                h.clock.now += 6
            case "fail":
                h.runner.fail_next = 1
            case "fail to launch":
                h.runner.fail_next_launch = 1
        h.finish(max_steps=40)
        for number in range(5):
            assert_text(h, str(number), LONG, 4)
        assert not h.tokens["first"] and "first" in h.ended
        assert h.core.load().totals.cache_miss_tokens <= 2 * len(LONG) + 5
        h.assert_totals_agree()

    def test_the_first_one_may_be_preempted(self, any_harness):
        h = any_harness(num_pages=64, page_size=4, max_step_tokens=32)
        h.add("old", distinct(1, 100), max_tokens=120)
        for _ in range(8):
            h.step()
        for number in range(4):
            h.add(str(number), LONG[:120], max_tokens=4)
        h.finish(max_steps=400)
        for number in range(4):
            assert_text(h, str(number), LONG[:120], 4)
        assert_text(h, "old", distinct(1, 100), 120)

    def test_requests_of_other_namespaces_do_not_wait(self, any_harness):
        h = any_harness(num_pages=400, max_step_tokens=64)
        for name in "xyz":
            h.add(name, LONG, max_tokens=4, namespace=name)
        h.step()
        assert set(h.started) == set("xyz")
        h.finish()
        assert all(h.ended[name].usage.cached_tokens == 0 for name in "xyz")

    def test_waiting_ends_when_the_common_part_is_there(self, any_harness):
        h = any_harness(num_pages=800, max_step_tokens=64)
        h.add("long", [*range(20), *LONG * 5], max_tokens=2)
        h.step()
        h.add("short", [*range(20), 5, 6, 7], max_tokens=2)
        for _ in range(4):
            h.step()
        assert "short" in h.ended and "long" not in h.ended
        assert h.ended["short"].usage.cached_tokens >= 16
        h.finish()
        assert_text(h, "short", [*range(20), 5, 6, 7], 2)

    def test_who_waits_for_a_prefix_lets_others_pass(self, any_harness):
        h = any_harness(num_pages=400, max_step_tokens=64)
        h.add("first", LONG, max_tokens=4)
        h.step()
        for number in range(70):  # more than are looked at in a step
            h.add(f"same {number}", LONG, max_tokens=1)
        h.add("other", PROMPT, max_tokens=1)
        h.finish(max_steps=60)
        assert_text(h, "other", PROMPT, 1)
        assert all(h.tokens[f"same {n}"] == expected_tokens(LONG, 1) for n in range(70))

    def test_a_short_prefix_is_not_worth_waiting_for(self, any_harness):
        h = any_harness(max_step_tokens=16)
        h.add("a", [*range(3), *range(100, 130)], max_tokens=2)
        h.add("b", [*range(3), *range(200, 230)], max_tokens=2)
        h.step()
        assert set(h.started) == {"a", "b"}


class TestDisplacement:
    def test_nobody_gives_way_in_vain(self, any_harness):
        """B waits for more than A's second request could give: A goes on undisturbed, step after step."""
        h = any_harness(num_pages=100, page_size=4, max_tenant_slowdown=None)
        h.add("b0", distinct(0, 240), max_tokens=3, tenant="B")
        h.add("a0", distinct(1, 120), max_tokens=120, tenant="A")
        while "b0" not in h.ended:
            h.step()
        h.add("b1", distinct(2, 330), max_tokens=3, tenant="B")
        for number in (1, 2):
            h.add(f"a{number}", distinct(2 + number, 24), max_tokens=12, tenant="A")
        h.finish()
        for name, prompt, count in (("a1", 3, 12), ("a2", 4, 12)):
            assert_text(h, name, distinct(prompt, 24), count)
            assert h.ended[name].usage.preemptions <= 1
        assert h.core.load().totals.preemptions <= 3

    def test_one_gives_way_where_that_is_enough(self, any_harness):
        h = any_harness(num_pages=40, page_size=4, max_tenant_slowdown=None)
        for number in range(3):
            h.add(f"a{number}", distinct(number, 40), max_tokens=60, tenant="A")
        for _ in range(4):
            h.step()
        h.add("b", distinct(9, 60), max_tokens=2, tenant="B")
        for _ in range(4):
            h.step()
        assert "b" in h.ended and h.core.load().totals.preemptions in (1, 2)
        h.finish()
        for number in range(3):
            assert_text(h, f"a{number}", distinct(number, 40), 60)


class TestTurns:
    @pytest.mark.parametrize(("rows", "slots"), [(2, 6), (1, 4), (3, 7)])
    def test_more_requests_than_rows_advance_evenly(self, any_harness, rows, slots):
        h = any_harness(num_pages=400, max_batch_size=rows, max_concurrent_requests=slots)
        for number in range(slots):
            h.add(str(number), distinct(number, 6), max_tokens=20)
        start, spread = None, 0
        while not h.ended:
            h.step()
            lengths = [len(h.tokens[str(number)]) for number in range(slots)]
            if start is None and min(lengths):
                start = lengths
            if start is not None:
                since = [now - then for now, then in zip(lengths, start, strict=True)]
                spread = max(spread, max(since) - min(since))
        assert start is not None and spread <= 2
        h.finish()
        assert max(map(len, h.runner.batches)) == rows
        for number in range(slots):
            assert_text(h, str(number), distinct(number, 6), 20)

    @pytest.mark.parametrize(("rows", "slots", "tenants"), [(1, 3, 1), (2, 6, 1), (4, 9, 8)])
    def test_newcomers_do_not_starve_those_who_run(self, any_harness, rows, slots, tenants):
        h = any_harness(
            num_pages=1000, max_batch_size=rows, max_concurrent_requests=slots, max_queue_size=1000
        )
        h.add("old", PROMPT, max_tokens=100, tenant="0")
        for step in range(60):
            for number in range(rows):
                new = f"{step} {number}"
                h.add(new, [step, number, 7], max_tokens=1, tenant=str(number % tenants))
            h.step()
        assert len(h.tokens["old"]) >= 20
        assert h.tokens["old"] == expected_tokens(PROMPT, len(h.tokens["old"]))

    def test_a_higher_priority_takes_the_place_of_a_lower_one(self, any_harness):
        h = any_harness(max_batch_size=2, policy="priority", fairness=False)
        for number in range(3):
            h.add(f"low {number}", distinct(number, 8), max_tokens=20, priority=-(2**31))
        for _ in range(4):
            h.step()
        h.add("high", distinct(9, 8), max_tokens=5, priority=2**31 - 1)
        while "high" not in h.ended:
            h.step()
        assert h.ended["high"].timings.queue_s == 0.0 and not h.tokens["low 2"]
        h.finish()
        assert h.ended["low 1"].usage.preemptions == 1 and h.ended["low 0"].usage.preemptions == 0
        for number in range(3):
            assert_text(h, f"low {number}", distinct(number, 8), 20)
        assert_text(h, "high", distinct(9, 8), 5)
        h.assert_totals_agree()

    def test_tenants_share_the_slots_evenly(self, any_harness):
        h = any_harness(num_pages=400, max_batch_size=6)
        for number in range(30):
            h.add(f"a {number}", distinct(number, 8), max_tokens=30, tenant="a")
        for number in range(3):
            h.add(f"b {number}", distinct(50 + number, 8), max_tokens=30, tenant="b")
        while sum(name.startswith("b") for name in h.ended) < 3:
            h.step()
        assert sum(name.startswith("a") for name in h.ended) <= 6
        h.finish()


class TestFullQueue:
    def test_it_refuses_with_a_hint_and_has_room_again_later(self, any_harness):
        h = any_harness(max_queue_size=3, max_batch_size=2)
        for number in range(5):
            h.add(str(number), PROMPT, max_tokens=3)
        with pytest.raises(EngineError) as refused:
            h.add("refused", PROMPT)
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.reason == "QUEUE_FULL" and refused.value.retry_after_s > 0
        h.core.cancel("4")
        h.add("refused", PROMPT, max_tokens=3)
        h.finish()
        assert_text(h, "refused", PROMPT, 3)
        assert h.core.load().totals.refused == 1
        h.assert_totals_agree()


@pytest.mark.parametrize("policy", ["fcfs", "lpm"])
def test_a_long_queue_costs_a_step_hardly_anything(harness, policy):
    """Looks at the cache are counted, not seconds: 5,000 wait, and a step looks up as many as before."""
    h = harness(max_queue_size=10_000, max_batch_size=4, policy=policy)
    for number in range(5000):
        h.add(str(number), distinct(number, 5), max_tokens=40)
    looked_up = []
    cache = h.core._tiers.cache
    peek = cache.peek
    cache.peek = lambda *args: looked_up.append(args) or peek(*args)
    for _ in range(10):
        h.step()
    assert len(looked_up) <= 10 * 128
    assert h.core.load().running_requests == 4
