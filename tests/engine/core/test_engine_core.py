import math

import grpc
import pytest

from rhizome_engine.core.events import FailedEvent, FinishedEvent, StartedEvent, TokensEvent
from rhizome_engine.sampling.params import SamplingParams
from rhizome_engine.scheduler.request import FinishReason
from rhizome_testing.hash_runner import expected_tokens
from rhizome_transport.errors import EngineError

PROMPT = list(range(10, 20))


def test_a_request_starts_streams_and_finishes(harness):
    h = harness()
    request = h.add("a", PROMPT, peer="gateway", max_tokens=5)
    events = h.step()
    assert [type(event) for event in events] == [StartedEvent, TokensEvent]
    h.finish()
    assert h.tokens["a"] == expected_tokens(PROMPT, 5)
    end = h.ended["a"]
    assert end.request is request and end.request.peer == "gateway"
    assert (end.reason, end.stop_token_id) == (FinishReason.LENGTH, None)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens, end.usage.cached_tokens) == (10, 5, 0)


def test_timings_follow_the_clock(harness):
    h = harness(max_batch_size=1)
    h.add("first", [1], max_tokens=1)
    h.add("a", PROMPT, max_tokens=3)
    h.step(2.0)  # the first one runs alone
    h.step(1.0)  # prefill and first token at once: the clock stands still inside a step
    h.step(4.0)
    h.step(5.0)
    timings = h.ended["a"].timings
    assert (timings.queue_s, timings.prefill_s, timings.decode_s) == (3.0, 0.0, 9.0)
    assert timings.time_to_first_token_s == 3.0


def test_prefill_time_covers_all_chunks(harness):
    h = harness(max_step_tokens=4)
    h.add("a", PROMPT, max_tokens=1)
    for _ in range(3):
        h.step(1.0)
    timings = h.ended["a"].timings
    assert (timings.queue_s, timings.prefill_s, timings.time_to_first_token_s) == (1.0, 2.0, 3.0)


def test_a_stop_token_ends_a_request_and_is_no_output(harness):
    tokens = expected_tokens(PROMPT, 8)
    h = harness()
    h.add("a", PROMPT, max_tokens=20, stop_token_ids=[tokens[4]])
    h.finish()
    assert h.tokens["a"] == tokens[:4]
    assert (h.ended["a"].reason, h.ended["a"].stop_token_id) == (FinishReason.STOP, tokens[4])
    assert h.ended["a"].usage.completion_tokens == 5


def test_end_of_sequence_ends_a_request_unless_it_is_ignored(harness):
    tokens = expected_tokens(PROMPT, 8)
    h = harness(eos=[tokens[2]])
    assert h.generate("a", PROMPT, 8) == tokens[:2]
    assert h.generate("b", PROMPT, 8, ignore_eos=True) == tokens


def test_stop_tokens_are_banned_below_min_tokens(harness):
    tokens = expected_tokens(PROMPT, 3)
    h = harness(eos=[tokens[0]])
    out = h.generate("a", PROMPT, 6, min_tokens=4)
    assert out[0] == tokens[0] + 1 and len(out) >= 4


def test_max_tokens_is_clipped_to_the_context_window(harness):
    h = harness(max_context_tokens=16)
    assert len(h.generate("a", PROMPT, 100)) == 6
    assert len(h.generate("b", PROMPT, None)) == 6
    assert h.ended["b"].reason is FinishReason.LENGTH


def test_the_pool_bounds_the_context_window(harness):
    h = harness(num_pages=3, page_size=4)
    assert h.core.max_context_tokens == 12
    assert h.generate("a", PROMPT, None) == expected_tokens(PROMPT, 2)


@pytest.mark.parametrize(
    ("prompt", "settings", "message", "param"),
    [
        ([], {}, "the prompt is empty", "prompt"),
        ([5, 1000], {}, "token id 1000, but the vocabulary has ids 0 to 999", "prompt"),
        ([-1], {}, "token id -1", "prompt"),
        ([2**40], {}, "token id 1099511627776", "prompt"),
        ([1] * 16, {}, r"16 tokens.*window is 16 tokens.*configured 16.*64 pages x 4 = 256", "prompt"),
        ([1], {"max_tokens": -1}, "max_tokens must not be negative", "max_tokens"),
        ([1], {"min_tokens": -1}, "min_tokens must not be negative", "min_tokens"),
        ([1], {"min_tokens": 3, "max_tokens": 2}, "must not exceed max_tokens", "min_tokens"),
        ([1], {"stop_token_ids": [1000]}, "token id 1000", "stop.token_ids"),
        ([1], {"params": SamplingParams(logit_bias={1000: 1.0})}, "token id 1000", "logit_bias"),
    ],
)
def test_what_can_never_be_served_is_refused_with_the_reason(harness, prompt, settings, message, param):
    h = harness(max_context_tokens=16)
    with pytest.raises(EngineError, match=message) as error:
        h.add("a", prompt, **settings)
    assert error.value.code is grpc.StatusCode.INVALID_ARGUMENT and error.value.param == param
    assert not h.core.has_work
    assert h.generate("a", [1], 3) == expected_tokens([1], 3)


def test_a_prompt_that_is_too_long_has_its_own_reason(harness):
    with pytest.raises(EngineError) as error:
        harness(max_context_tokens=4).add("a", [1, 2, 3, 4])
    assert error.value.reason == "CONTEXT_LENGTH_EXCEEDED"


def test_an_open_request_id_is_refused_for_the_same_peer_only(harness):
    h = harness()
    h.add("a", [1], peer=1, max_tokens=2)
    with pytest.raises(EngineError, match="already open"):
        h.add("a", [1], peer=1)
    h.core.add(h.add("b", [1], peer=1, max_tokens=2).__class__("a", [1], peer=2, max_tokens=2))
    assert h.core.load().waiting_requests == 3


def test_a_full_queue_refuses_with_a_hint(harness):
    h = harness(max_queue_size=2, max_batch_size=1)
    for name in "abc":  # one that the next step starts, and two that wait
        h.add(name, PROMPT, max_tokens=2)
    with pytest.raises(EngineError, match="busy") as error:
        h.add("d", PROMPT)
    assert error.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED and error.value.retry_after_s > 0
    assert h.core.load().totals.refused == 1
    h.step()
    with pytest.raises(EngineError):
        h.add("d", PROMPT)
    h.finish()
    assert h.generate("d", PROMPT, 2) == expected_tokens(PROMPT, 2)


def test_cancel_frees_the_pages_at_once_in_every_state(harness):
    h = harness(max_batch_size=2, max_step_tokens=8, page_size=1)
    h.add("decoding", [1, 2], max_tokens=50)
    h.step()
    h.add("prefilling", list(range(100, 140)), max_tokens=50)
    h.add("waiting", PROMPT, max_tokens=50)
    h.step()
    assert h.core.load().kv_pages_in_use > 2
    for name in ("waiting", "prefilling", "decoding"):
        assert h.core.cancel(name)
        h.core.check_conservation()
        assert not h.core.cancel(name)
    load = h.core.load()
    assert (load.kv_pages_in_use, load.running_requests, load.waiting_requests) == (0, 0, 0)
    assert h.core.has_work  # the events still have to be told
    h.step()
    assert {end.reason for end in h.ended.values()} == {FinishReason.CANCELLED} and len(h.ended) == 3
    assert h.ended["decoding"].usage.completion_tokens == 2
    assert h.ended["waiting"].timings.prefill_s == 0.0
    assert not h.core.has_work and load.totals.aborted == 3


def test_what_a_cancelled_request_computed_is_a_hit_for_the_next(harness):
    h = harness(max_step_tokens=8)
    prompt = list(range(30))
    h.add("a", prompt, max_tokens=5)
    h.step()
    h.core.cancel("a")
    assert h.generate("b", prompt, 3) == expected_tokens(prompt, 3)
    assert h.ended["b"].usage.cached_tokens == 8


def test_a_dropped_peer_loses_its_requests_and_nobody_elses(harness):
    h = harness()
    h.add("a", PROMPT, peer="gone", max_tokens=9)
    h.add("b", PROMPT, peer="here", max_tokens=9)
    h.step()
    h.core.cancel("a", "gone")
    h.add("c", PROMPT, peer="gone", max_tokens=9)
    assert len(h.core.drop_peer("gone")) == 2  # one was cancelled before
    h.finish()
    assert set(h.ended) == {"b"} and h.tokens["b"] == expected_tokens(PROMPT, 9)


def test_deadlines_end_running_and_queued_requests(harness):
    h = harness(max_batch_size=1)
    h.add("running", PROMPT, max_tokens=50, deadline=h.clock.now + 3)
    h.add("queued", PROMPT, max_tokens=50, deadline=h.clock.now + 2)
    h.add("patient", PROMPT, max_tokens=3, deadline=math.inf)
    h.step(1.0)
    h.step(1.0)
    assert set(h.ended) == {"queued"}
    h.step(1.0)
    assert set(h.ended) == {"queued", "running"}
    for name in ("queued", "running"):
        assert isinstance(h.ended[name], FailedEvent)
        assert h.ended[name].error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    h.finish()
    assert h.tokens["patient"] == expected_tokens(PROMPT, 3)
    assert h.core.load().totals.expired == 2


def test_a_later_turn_finds_the_earlier_question_and_answer(harness):
    h = harness(page_size=4)
    answer = h.generate("first", PROMPT, 9)
    turn = [*PROMPT, *answer, 7, 8, 9]
    assert h.generate("second", turn, 4) == expected_tokens(turn, 4)
    # 19 tokens of the first turn, the last of which was never computed: 4 whole pages hold 16
    assert h.ended["second"].usage.cached_tokens == 16
    assert h.started["second"].cached_tokens == 16


def test_hits_are_exact_to_the_token(harness):
    h = harness(page_size=16)
    h.generate("first", list(range(40)), 1)
    prompt = [*range(27), 99, 98]
    assert h.generate("second", prompt, 4) == expected_tokens(prompt, 4)
    assert h.ended["second"].usage.cached_tokens == 27


def test_a_running_request_shares_its_prompt(harness):
    h = harness(page_size=4)
    h.add("first", PROMPT, max_tokens=20)
    h.step()
    h.add("second", PROMPT, max_tokens=5)
    h.step()
    assert h.started["second"].cached_tokens == 8
    h.finish()
    assert h.tokens["first"][:5] == h.tokens["second"]


def test_namespaces_share_nothing(harness):
    h = harness()
    h.generate("a", PROMPT, 4, namespace="one")
    assert h.generate("b", PROMPT, 4, namespace="two") == expected_tokens(PROMPT, 4)
    assert h.ended["b"].usage.cached_tokens == 0


def test_flushing_keeps_what_runs(harness):
    h = harness()
    h.generate("done", list(range(20)), 4)
    h.add("open", PROMPT, max_tokens=9)
    h.step()
    assert h.core.flush_cache() > 0
    h.core.check_conservation()
    h.finish()
    assert h.tokens["open"] == expected_tokens(PROMPT, 9)


def test_log_probabilities_come_where_asked_for(harness):
    h = harness()
    h.add("a", PROMPT, SamplingParams(top_logprobs=2), max_tokens=1)
    h.add("b", [1, 2, 3], max_tokens=1)
    by_name = {e.request.request_id: e for e in h.step() if isinstance(e, TokensEvent)}
    assert len(by_name["a"].logprobs) == 1 and len(by_name["a"].logprobs[0].top) == 2
    assert by_name["b"].logprobs is None


def test_a_failed_step_ends_its_requests_and_caches_nothing_more(harness, caplog):
    h = harness(max_batch_size=2, page_size=4)
    h.add("a", PROMPT, max_tokens=9)
    h.add("b", [1, 2, 3], max_tokens=9)
    h.add("c", PROMPT, max_tokens=9)
    for _ in range(4):  # the prompt's two whole pages are shared, a third is computed
        h.step()
    h.runner.fail_next = 1
    h.step()
    assert set(h.ended) == {"a", "b"} and "failed" in caplog.text
    assert {end.error.code for end in h.ended.values()} == {grpc.StatusCode.INTERNAL}
    assert h.core.load().kv_pages_cached == 2
    h.finish()
    assert h.tokens["c"] == expected_tokens(PROMPT, 9)


def test_a_runner_that_keeps_failing_is_given_up(harness):
    h = harness(max_batch_size=1)
    for name in "abcd":
        h.add(name, PROMPT)
    h.runner.fail_next = 3
    h.step()
    h.step()
    with pytest.raises(RuntimeError, match="asked for"):
        h.core.step()


def test_load_counts_what_happened(harness):
    h = harness(max_batch_size=1, page_size=4)
    h.add("a", PROMPT, max_tokens=5)
    h.add("b", PROMPT, max_tokens=5)
    assert h.core.load().waiting_tokens == 20 and h.core.load().mean_times is None
    h.step(1.0)
    load = h.core.load()
    assert (load.running_requests, load.waiting_requests, load.waiting_tokens) == (1, 1, 10)
    assert (load.kv_pages_total, load.kv_pages_in_use, load.kv_pages_cached) == (64, 3, 0)
    while h.core.has_work:
        h.step(1.0)
    load = h.core.load()
    totals = load.totals
    assert (totals.received, totals.completed, totals.aborted, totals.refused) == (2, 2, 0, 0)
    assert (totals.cache_hit_tokens, totals.cache_miss_tokens, totals.generated_tokens) == (9, 11, 10)
    assert load.generated_tokens_per_second == pytest.approx(1.0)
    # a: queue 1, decode 4; b: starts with the sixth step
    assert (load.mean_times.queue_s, load.mean_times.decode_s) == (3.5, 4.0)
    assert isinstance(h.ended["b"], FinishedEvent)
    h.clock.now += 60
    assert h.core.load().generated_tokens_per_second == 0.0


def test_end_tokens_outside_the_vocabulary_do_no_harm(harness):
    h = harness(eos=(-1, 999, 1000))
    request = h.add("a", PROMPT, min_tokens=2)
    assert request.stop_ids == {999}  # the sampler refuses to ban what there is not


def test_a_satisfied_caller_completes_its_request(harness):
    h = harness()
    h.add("a", PROMPT, max_tokens=50)
    h.step()
    assert h.core.cancel("a", satisfied=True)
    h.finish()
    assert h.ended["a"].reason is FinishReason.STOP
    assert (h.core.load().totals.completed, h.core.load().totals.aborted) == (1, 0)
