"""Steps launched before the one before was read: what happens in between must not show.

Rows of the step under way may belong to requests that ended, gave their pages back or were told by a grammar
what comes next; they are computed for nothing, and nothing of them may reach a text, a count or the cache.
"""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from rhizome_engine.core.events import TokensEvent
from rhizome_engine.scheduler.request import FinishReason, RequestState
from rhizome_testing.hash_runner import expected_tokens

PROMPT = list(range(10, 20))
OTHER = list(range(300, 312))


@pytest.fixture
def overlapping(harness):
    return lambda **settings: harness(**({"overlap": True} | settings))


def rows_computed(h):
    return sum(map(sum, h.runner.batches))


def test_a_step_is_launched_before_the_one_before_is_read(overlapping):
    h = overlapping()
    h.add("a", PROMPT, max_tokens=3)
    assert not any(isinstance(event, TokensEvent) for event in h.step()) and len(h.runner.batches) == 1
    assert any(isinstance(event, TokensEvent) for event in h.step()) and len(h.runner.batches) == 2


def test_with_and_without_overlap_the_same_is_told(harness):
    told = []
    for overlap in (False, True):
        h = harness(num_pages=48, overlap=overlap, max_step_tokens=24, eos=[7, 77, 177, 277])
        for number in range(30):
            prompt = [(number * 13 + place * (1 + number % 4)) % 1000 for place in range(5 + number)]
            h.add(str(number), prompt, max_tokens=30, tenant=str(number % 3))
        h.finish(max_steps=3000)
        h.assert_totals_agree()
        told.append(
            {
                name: (h.tokens[name], end.reason, end.stop_token_id, end.usage.completion_tokens)
                for name, end in h.ended.items()
            }
        )
    assert told[0] == told[1]
    assert {reason for _, reason, _, _ in told[0].values()} == {FinishReason.STOP, FinishReason.LENGTH}


class TestWastedRows:
    @pytest.mark.parametrize("stops_by", ["eos", "stop token"])
    def test_a_stop_wastes_one_row_and_no_token(self, harness, stops_by):
        tokens = expected_tokens(PROMPT, 8)
        rows = {}
        for overlap in (False, True):
            h = harness(overlap=overlap, eos=[tokens[4]] if stops_by == "eos" else ())
            h.add("a", PROMPT, max_tokens=50, stop_token_ids=[] if stops_by == "eos" else [tokens[4]])
            h.add("b", OTHER, max_tokens=12)
            h.finish()
            assert h.tokens["a"] == tokens[:4] and h.tokens["b"] == expected_tokens(OTHER, 12)
            assert h.ended["a"].reason is FinishReason.STOP and h.ended["a"].stop_token_id == tokens[4]
            assert h.ended["a"].usage.completion_tokens == 5
            assert h.core.load().totals.generated_tokens == 5 + 12
            rows[overlap] = rows_computed(h)
        assert rows[True] == rows[False] + 1

    def test_a_request_that_ends_by_length_wastes_none(self, overlapping):
        h = overlapping()
        assert h.generate("a", PROMPT, 6) == expected_tokens(PROMPT, 6)
        assert rows_computed(h) == len(PROMPT) + 5

    def test_what_a_wasted_row_computed_is_not_cached(self, overlapping):
        tokens = expected_tokens(PROMPT, 8)
        h = overlapping(page_size=1, eos=[tokens[4]])
        h.generate("a", PROMPT, 50)
        turn = [*PROMPT, *tokens[:5], 1, 2]
        assert h.generate("b", turn, 3, ignore_eos=True) == expected_tokens(turn, 3)
        assert h.ended["b"].usage.cached_tokens == len(PROMPT) + 4  # the stop token was never confirmed

    def test_the_slot_of_a_cancelled_request_is_taken_over_while_its_row_is_under_way(self, overlapping):
        h = overlapping(max_batch_size=1, num_pages=16)
        for number in range(6):
            name = str(number)
            prompt = [number * 100 + place for place in range(9)]
            h.add(name, prompt, max_tokens=9)
            for _ in range(number + 1):
                h.step()
            if number % 2:
                h.core.cancel(name)
            else:
                while name not in h.ended:
                    h.step()
            assert h.tokens[name] == expected_tokens(prompt, len(h.tokens[name]))
        h.finish()
        h.assert_totals_agree()

    def test_a_cancel_one_step_before_the_last_token_drops_it(self, overlapping):
        h = overlapping()
        h.add("a", PROMPT, max_tokens=3)
        for _ in range(3):  # the third token is being chosen
            h.step()
        assert len(h.tokens["a"]) == 2 and len(h.runner.batches) == 3
        h.core.cancel("a")
        h.finish()
        assert h.ended["a"].reason is FinishReason.CANCELLED
        assert h.ended["a"].usage.completion_tokens == len(h.tokens["a"]) == 2
        assert h.step() == []
        h.assert_totals_agree()


class TestFailures:
    def test_a_failed_step_takes_its_requests_and_spares_those_of_the_next(self, overlapping, caplog):
        h = overlapping()
        h.add("a", PROMPT, max_tokens=20)
        h.add("b", OTHER, max_tokens=20)
        for _ in range(3):
            h.step()
        h.runner.fail_next = 1
        h.step()  # launches the step that fails
        h.add("c", [1, 2, 3], max_tokens=6)
        h.step()  # launches the next one and reads the failure
        assert set(h.ended) == {"a", "b"} and "failed" in caplog.text
        for name in "ab":
            assert h.ended[name].error.code is grpc.StatusCode.INTERNAL
            assert h.ended[name].usage.completion_tokens == len(h.tokens[name]) == 3
        h.finish()
        assert h.tokens["c"] == expected_tokens([1, 2, 3], 6)
        h.assert_totals_agree()
        for name, prompt in (("a2", PROMPT), ("b2", OTHER)):  # nothing wrong was left in the cache
            assert h.generate(name, prompt, 8) == expected_tokens(prompt, 8)

    def test_a_step_that_cannot_be_launched_drops_what_is_under_way_for_its_requests(self, overlapping):
        h = overlapping()
        h.add("a", PROMPT, max_tokens=20)
        for _ in range(3):
            h.step()
        h.runner.fail_next_launch = 1
        h.step()
        assert h.ended["a"].error.code is grpc.StatusCode.INTERNAL
        assert h.ended["a"].usage.completion_tokens == len(h.tokens["a"]) == 2
        assert h.generate("b", PROMPT, 6) == expected_tokens(PROMPT, 6)
        h.assert_totals_agree()

    def test_a_step_whose_tokens_cannot_be_chosen_ends_its_requests_only(self, any_harness, caplog):
        h = any_harness()
        h.add("a", PROMPT, max_tokens=20)
        for _ in range(3):
            h.step()
        h.runner.fail_next_sample = 1
        h.step()
        assert h.ended["a"].error.code is grpc.StatusCode.INTERNAL and "failed" in caplog.text
        assert h.generate("b", PROMPT, 6) == expected_tokens(PROMPT, 6)
        h.assert_totals_agree()

    @pytest.mark.parametrize("kind", ["fail_next", "fail_next_launch", "fail_next_sample"])
    def test_a_runner_that_keeps_failing_is_given_up(self, overlapping, kind):
        h = overlapping(max_batch_size=1)
        for number in range(6):
            h.add(str(number), PROMPT, max_tokens=4)
        setattr(h.runner, kind, 10)
        with pytest.raises(RuntimeError, match="asked for"):
            for _ in range(10):
                h.step()
        assert len(h.ended) == 2

    def test_a_failed_copy_of_a_page_does_no_harm_to_anybody_else(self, overlapping):
        h = overlapping(page_size=4, max_step_tokens=16)
        h.generate("warm", PROMPT, 3)
        h.add("a", [*PROMPT, 1, 2, 3], max_tokens=4)
        h.add("b", [*PROMPT, 4, 5, 6], max_tokens=4)
        h.runner.fail_next_launch = 1
        h.finish()
        for name, suffix in (("a", [1, 2, 3]), ("b", [4, 5, 6])):
            got = h.tokens[name]
            assert got == expected_tokens([*PROMPT, *suffix], len(got))
        h.assert_totals_agree()


class TestPreemption:
    def test_a_token_that_was_under_way_counts(self, overlapping):
        """Between launch and read a request gives its pages back; its token is told all the same."""
        h = overlapping(num_pages=12, page_size=4)
        for name in "abc":
            h.add(name, [ord(name)] * 8, max_tokens=30)
        told_while_waiting = 0
        while h.core.has_work:
            for event in h.step():
                waits = event.request.state is RequestState.WAITING
                told_while_waiting += isinstance(event, TokensEvent) and waits
        assert told_while_waiting > 0
        for name in "abc":
            assert h.tokens[name] == expected_tokens([ord(name)] * 8, 30)
        h.assert_totals_agree()

    @pytest.mark.parametrize("seed", range(12))
    def test_nothing_is_lost_when_tenants_and_pages_force_requests_out(self, overlapping, seed):
        random = np.random.default_rng(seed)
        h = overlapping(
            num_pages=int(random.choice([16, 24, 40])),
            max_step_tokens=int(random.choice([8, 16, 32])),
            max_batch_size=8,
            policy=str(random.choice(["fcfs", "lpm", "priority"])),
        )
        prompts = []
        for number in range(30):
            length = int(random.integers(4, 40))
            prompts.append(random.choice([0, 1, 2, number], length).tolist())
            tenant, priority = str(random.choice(["a", "a", "a", "b"])), int(random.integers(0, 2))
            h.add(str(number), prompts[-1], max_tokens=12, tenant=tenant, priority=priority)
            for _ in range(int(random.integers(0, 3))):
                h.step()
        h.finish(max_steps=3000)
        for number, prompt in enumerate(prompts):
            assert h.tokens[str(number)] == expected_tokens(prompt, 12)
        h.assert_totals_agree()

    def test_the_last_token_may_be_under_way_when_a_request_gives_way(self, overlapping):
        for pages in range(7, 13):
            h = overlapping(num_pages=pages, page_size=2)
            for number in range(3):
                h.add(str(number), [number, 5], max_tokens=10)
            h.finish(max_steps=300)
            for number in range(3):
                assert h.tokens[str(number)] == expected_tokens([number, 5], 10)
            h.assert_totals_agree()
