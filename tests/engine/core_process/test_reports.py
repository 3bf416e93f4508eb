"""Numbers that must not lie: what requests were told, the totals and the histograms are one truth."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from rhizome.common.v1.common_pb2 import Timings, Usage
from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest, GetLoadResponse
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome.engine.v1.load_pb2 import Histogram
from rhizome_engine.core.durations import to_duration, to_seconds
from rhizome_engine.core.request_histograms import Histogram as Counting
from rhizome_testing.hash_core import HashCore, all_events, token_request
from rhizome_transport.errors import EngineError
from rhizome_transport.zmq_client import ZmqEngineClient


@given(st.floats(0, 1e6))
def test_durations_keep_nanoseconds(seconds: float) -> None:
    assert to_seconds(to_duration(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.lists(st.floats(0, 10)))
def test_every_value_is_in_the_one_bucket_that_holds_it(values: list[float]) -> None:
    counting = Counting((1.0, 2.5, 5.0))
    for value in values:
        counting.observe(value)
    message = counting.message()
    edges = [float("-inf"), 1.0, 2.5, 5.0, float("inf")]
    expected = [sum(low < v <= high for v in values) for low, high in itertools.pairwise(edges)]
    assert list(message.counts) == expected
    assert message.sum == pytest.approx(sum(values))


def count(histogram: Histogram) -> int:
    return sum(histogram.counts)


async def until_idle(hash_core: HashCore) -> None:
    async with asyncio.timeout(10):
        while hash_core.core.has_work:  # noqa: ASYNC110 - looks without a frame
            await asyncio.sleep(0.01)


async def report(client: ZmqEngineClient) -> GetLoadResponse:
    answers = await client.call("GetLoad", GetLoadRequest().SerializeToString())
    return GetLoadResponse.FromString(answers[0])


async def finished(client: ZmqEngineClient, request: GenerateRequest) -> tuple[Usage, Timings]:
    last = (await all_events(client, request))[-1].finished
    return last.usage, last.timings


async def test_the_sums_of_what_requests_were_told_are_the_totals(client: ZmqEngineClient) -> None:
    requests = [token_request(list(range(number, number + 20)), max_tokens=6) for number in (0, 0, 1, 40)]
    requests.append(token_request([1, 2, 3], max_tokens=0))
    told = [await finished(client, request) for request in requests]
    answer = await report(client)
    totals, histograms = answer.load.totals, answer.histograms
    assert (totals.received, totals.completed, totals.failed, totals.expired) == (5, 5, 0, 0)
    assert totals.prompt_tokens == sum(usage.prompt_tokens for usage, _ in told)
    assert totals.generated_tokens == sum(usage.completion_tokens for usage, _ in told) == 24
    assert totals.cache_hit_tokens == sum(usage.cached_tokens for usage, _ in told) > 0
    assert totals.cache_hit_tokens + totals.cache_miss_tokens == totals.prompt_tokens
    assert totals.steps > 0
    for name in ("queue", "prefill", "decode"):
        total: Duration = getattr(totals, f"{name}_time")
        assert to_seconds(total) == pytest.approx(
            sum(to_seconds(getattr(timings, f"{name}_time")) for _, timings in told), abs=1e-6
        )
        assert getattr(histograms, f"{name}_seconds").sum == pytest.approx(to_seconds(total), abs=1e-6)
    assert histograms.cached_tokens.sum == totals.cache_hit_tokens
    assert count(histograms.queue_seconds) == count(histograms.prefill_seconds) == 5
    # The one without a token has no first one.
    assert count(histograms.decode_seconds) == count(histograms.time_to_first_token_seconds) == 4


async def test_every_accepted_request_is_counted_once_however_it_ends(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    await all_events(client, token_request([1, 2]))
    hash_core.slow_down()
    async with aclosing(client.generate(token_request([3], max_tokens=200))) as cancelled:
        await anext(cancelled)
    other = ZmqEngineClient(hash_core.endpoint, peer_name="short-lived")
    vanished = other.generate(token_request([4], max_tokens=200))
    await anext(vanished)
    await other.close()
    await vanished.aclose()
    await until_idle(hash_core)
    hash_core.runner.fail_next = 1
    with pytest.raises(EngineError):
        await all_events(client, token_request([5]))
    with pytest.raises(EngineError):
        await all_events(client, token_request([]))  # refused, so never received
    answer = await report(client)
    totals = answer.load.totals
    assert (totals.completed, totals.aborted, totals.failed, totals.expired) == (1, 2, 1, 0)
    assert totals.received == count(answer.histograms.queue_seconds) == 4
    assert answer.histograms.queue_seconds.sum == pytest.approx(to_seconds(totals.queue_time), abs=1e-3)


async def test_a_deadline_is_counted_as_expired_and_not_as_cancelled(client: ZmqEngineClient) -> None:
    long = client.generate(token_request([1], max_tokens=200))
    await anext(long)
    with pytest.raises(EngineError) as caught:
        await all_events(client, token_request([2], max_tokens=250), timeout_s=0.0)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await long.aclose()
    totals = (await report(client)).load.totals
    assert (totals.expired, totals.aborted) in ((1, 0), (1, 1))
