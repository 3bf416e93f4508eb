"""The core's loop over its real socket."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import zmq

from rhizome.engine.v1.engine_admin_service_pb2 import (
    DrainRequest,
    DrainResponse,
    FlushCacheRequest,
    FlushCacheResponse,
)
from rhizome.engine.v1.engine_service_pb2 import AbortRequest
from rhizome.engine.v1.frames_pb2 import (
    Call,
    CallResult,
    Cancel,
    ClientFrame,
    EngineFrame,
    Hello,
    Submit,
)
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    GenerateRequest,
)
from rhizome_testing.hash_core import HashCore, all_events, token_request, tokens_in
from rhizome_testing.hash_runner import expected_tokens
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.dealer import RELAYED_IDENTITY_PREFIX, DealerConnection
from rhizome_transport.errors import EngineError
from rhizome_transport.zmq_client import ZmqEngineClient

ENDLESS = 200
"""Tokens of a request that does not end by itself while the core is slowed down: 4 s."""


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this did not come true in time"
        await asyncio.sleep(0.005)


async def test_streams_started_tokens_and_finished(hash_core: HashCore, client: ZmqEngineClient) -> None:
    events = await all_events(client, token_request([1, 2, 3, 4, 5], max_tokens=9))
    assert events[0].started.prompt_tokens == 5
    assert tokens_in(events) == expected_tokens([1, 2, 3, 4, 5], 9)
    finished = events[-1].finished
    assert finished.reason == FINISH_REASON_LENGTH
    assert (finished.usage.prompt_tokens, finished.usage.completion_tokens) == (5, 9)
    assert finished.timings.time_to_first_token.ToNanoseconds() > 0


async def test_a_repeated_prompt_is_found_in_the_cache(client: ZmqEngineClient) -> None:
    await all_events(client, token_request(list(range(20))))
    events = await all_events(client, token_request(list(range(20))))
    assert events[0].started.cached_tokens >= 16
    assert tokens_in(events) == expected_tokens(list(range(20)), 5)


def changed(change: Callable[[GenerateRequest], object]) -> GenerateRequest:
    request = token_request([1, 2, 3])
    change(request)
    return request


@pytest.mark.parametrize(
    ("request_", "param", "words"),
    [
        (token_request([]), "prompt", "empty"),
        (token_request([1, 1000]), "prompt", "1000"),
        (token_request(list(range(300))), "prompt", "context window is 256"),
        (changed(lambda r: r.stop.strings.append("x")), "stop.strings", "call Generate"),
        (changed(lambda r: r.sampling.bad_words.append("x")), "sampling.bad_words", "call Generate"),
        (changed(lambda r: setattr(r, "echo", True)), "echo", "call Generate"),
        (changed(lambda r: setattr(r, "resumed_tokens", 3)), "resumed_tokens", "less than the 3 tokens"),
        (changed(lambda r: setattr(r, "prompt_logprobs", 10**6)), "prompt_logprobs", "128"),
        (
            changed(lambda r: r.sampling.allowed_token_ids.SetInParent()),
            "sampling.allowed_token_ids",
            "at least one",
        ),
        (changed(lambda r: r.sampling.allowed_token_ids.ids.append(5000)), "allowed_token_ids", "5000"),
        (
            changed(lambda r: r.sampling.bad_token_sequences.add()),
            "sampling.bad_token_sequences[0]",
            "tokens: 0",
        ),
        (changed(lambda r: r.grammar.SetInParent()), "grammar", "json_schema"),
        (changed(lambda r: setattr(r, "text", "hi")), "input", "token_ids only"),
        (changed(lambda r: r.ClearField("token_ids")), "input", "missing"),
        (changed(lambda r: setattr(r.sampling, "temperature", math.nan)), "sampling.temperature", "nan"),
        (changed(lambda r: setattr(r.sampling, "temperature", -1.0)), "sampling.temperature", "-1"),
        (changed(lambda r: setattr(r.sampling, "top_p", math.inf)), "sampling.top_p", "inf"),
        (changed(lambda r: setattr(r.sampling, "top_logprobs", 10**6)), "sampling.top_logprobs", "128"),
        (changed(lambda r: r.sampling.logit_bias.update({5: math.inf})), "sampling.logit_bias[5]", "inf"),
        (changed(lambda r: r.sampling.logit_bias.update({5000: 1.0})), "logit_bias", "5000"),
        (changed(lambda r: r.stop.token_ids.append(1 << 30)), "stop.token_ids", "vocabulary"),
        (changed(lambda r: setattr(r.stop, "min_tokens", 6)), "min_tokens", "exceed"),
        (changed(lambda r: setattr(r, "request_id", "x" * 300)), "request_id", "256"),
    ],
)
async def test_refuses_what_cannot_be_served(
    client: ZmqEngineClient, request_: GenerateRequest, param: str, words: str
) -> None:
    request = GenerateRequest()
    request.CopyFrom(request_)
    with pytest.raises(EngineError) as caught:
        await all_events(client, request)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.param == param
    assert words in caught.value.message
    assert tokens_in(await all_events(client, token_request([4]))) == expected_tokens([4], 5)


async def test_refuses_a_model_that_is_not_served(client: ZmqEngineClient) -> None:
    request = token_request([1])
    request.model = "other"
    with pytest.raises(EngineError) as caught:
        await all_events(client, request)
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert "'hash'" in caught.value.message


async def test_refuses_a_second_open_request_of_the_same_peer_and_id(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    import zmq.asyncio

    from rhizome.engine.v1.frames_pb2 import ClientFrame, EngineFrame, Hello, Submit

    hash_core.slow_down()
    context = zmq.asyncio.Context()
    with context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(hash_core.endpoint)
        submit = Submit(request=token_request([1], max_tokens=ENDLESS, request_id="same"))
        for frame in (
            ClientFrame(hello=Hello(protocol_version=PROTOCOL_VERSION, initial_credit=10_000)),
            ClientFrame(submit=submit),
            ClientFrame(submit=submit),
        ):
            await dealer.send(frame.SerializeToString())
        while True:
            frame = EngineFrame.FromString(await asyncio.wait_for(dealer.recv(), 20))
            refusals = [e.status for e in frame.events if e.HasField("status")]
            if refusals:
                assert "already open" in refusals[0].message
                break
    context.term()
    events = await all_events(client, token_request([1], request_id="same"))
    assert tokens_in(events) == expected_tokens([1], 5)


async def test_a_full_queue_refuses_with_a_retry_hint(hash_core: HashCore, client: ZmqEngineClient) -> None:
    hash_core.slow_down()
    requests = [token_request([i], max_tokens=30) for i in range(20)]
    results = await asyncio.gather(*(all_events(client, r) for r in requests), return_exceptions=True)
    refused = [result for result in results if isinstance(result, EngineError)]
    served = [result for result in results if isinstance(result, list)]
    assert refused and served
    assert {error.code for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(error.retry_after_s for error in refused)


async def test_cancelling_frees_the_pages(hash_core: HashCore, client: ZmqEngineClient) -> None:
    hash_core.slow_down()
    request = token_request([1, 2, 3], max_tokens=ENDLESS, request_id="long")
    events = client.generate(request)
    assert (await anext(events)).HasField("started")
    await client.cancel("long")
    rest = [event async for event in events]
    assert rest[-1].finished.reason == FINISH_REASON_CANCELLED
    load = await client.load()
    assert (load.running_requests, load.kv_pages_in_use) == (0, 0)
    assert load.totals.aborted == 1


async def test_a_vanished_peer_frees_its_pages(hash_core: HashCore, client: ZmqEngineClient) -> None:
    hash_core.slow_down()
    other = ZmqEngineClient(hash_core.endpoint, peer_name="short-lived")
    events = other.generate(token_request([1], max_tokens=ENDLESS))
    await anext(events)
    await other.close()
    await eventually(lambda: not hash_core.core.has_work)
    assert (await client.load()).kv_pages_in_use == 0
    await events.aclose()


async def test_a_request_ends_at_its_deadline(hash_core: HashCore, client: ZmqEngineClient) -> None:
    hash_core.slow_down()
    with pytest.raises(EngineError) as caught:
        await all_events(client, token_request([1], max_tokens=ENDLESS), timeout_s=0.3)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: not hash_core.core.has_work)


async def test_a_failed_step_fails_its_requests_and_the_core_goes_on(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    hash_core.runner.fail_next = 1
    with pytest.raises(EngineError) as caught:
        await all_events(client, token_request([1, 2]))
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert tokens_in(await all_events(client, token_request([1, 2]))) == expected_tokens([1, 2], 5)


async def test_repeated_failures_end_the_core(tmp_path: Path) -> None:
    core = HashCore(tmp_path)
    client = ZmqEngineClient(core.endpoint, peer_name="test")
    core.runner.fail_next = 1000
    for _ in range(3):
        with pytest.raises(EngineError):
            await all_events(client, token_request([1]))
    await eventually(lambda: not core.running)
    assert isinstance(core.failure, RuntimeError)
    await client.close()


async def test_abort_ends_the_requests_of_every_peer(hash_core: HashCore, client: ZmqEngineClient) -> None:
    hash_core.slow_down()
    other = ZmqEngineClient(hash_core.endpoint, peer_name="other")
    mine = client.generate(token_request([1], max_tokens=ENDLESS, request_id="shared"))
    theirs = other.generate(token_request([2], max_tokens=ENDLESS, request_id="shared"))
    await anext(mine)
    await anext(theirs)
    await client.call("Abort", AbortRequest(request_ids=["shared", "unknown"]).SerializeToString())
    for events in (mine, theirs):
        assert [event async for event in events][-1].finished.reason == FINISH_REASON_CANCELLED
    await other.close()


async def test_drain_refuses_new_requests_and_waits_for_open_ones(client: ZmqEngineClient) -> None:
    open_one = client.generate(token_request([1], max_tokens=100))
    await anext(open_one)
    draining = asyncio.create_task(client.call("Drain", DrainRequest().SerializeToString()))
    rest = asyncio.create_task(_collect(open_one))
    answer = DrainResponse.FromString((await draining)[0])
    assert answer.cancelled_requests == 0
    assert (await rest)[-1].finished.reason == FINISH_REASON_LENGTH
    with pytest.raises(EngineError) as caught:
        await all_events(client, token_request([1]))
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_drain_cancels_what_is_open_when_its_time_is_over(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    hash_core.slow_down()
    open_one = client.generate(token_request([1], max_tokens=ENDLESS))
    await anext(open_one)
    request = DrainRequest()
    request.timeout.FromMilliseconds(50)
    answers = await client.call("Drain", request.SerializeToString())
    assert DrainResponse.FromString(answers[0]).cancelled_requests == 1
    assert (await _collect(open_one))[-1].finished.reason == FINISH_REASON_CANCELLED


async def _collect(events):  # type: ignore[no-untyped-def]
    return [event async for event in events]


async def test_flush_cache_drops_one_namespace_or_all(client: ZmqEngineClient) -> None:
    for namespace in ("a", "b"):
        request = token_request(list(range(16)))
        request.cache_namespace = namespace
        await all_events(client, request)
    cached = (await client.load()).kv_pages_cached
    one = await client.call("FlushCache", FlushCacheRequest(cache_namespace="a").SerializeToString())
    everything = await client.call("FlushCache", FlushCacheRequest().SerializeToString())
    freed = [FlushCacheResponse.FromString(answers[0]).freed_pages for answers in (one, everything)]
    assert all(freed) and sum(freed) == cached


async def test_hands_out_the_tokenizer_in_chunks(client: ZmqEngineClient) -> None:
    tokenizer = await client.tokenizer_files()
    assert tokenizer.files == {"tokenizer.json": b"{}" * 300_000, "generation_config.json": b""}


@pytest.mark.parametrize(
    ("method", "payload", "code"),
    [
        ("Nonsense", b"", grpc.StatusCode.UNIMPLEMENTED),
        ("GetModelInfo", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("Drain", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("WarmPrefix", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("GetLoad", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_wrong_call_is_answered_with_an_error(
    client: ZmqEngineClient, method: str, payload: bytes, code: grpc.StatusCode
) -> None:
    with pytest.raises(EngineError) as caught:
        await client.call(method, payload)
    assert caught.value.code is code


async def test_a_call_that_breaks_is_answered_and_the_core_goes_on(
    hash_core: HashCore, client: ZmqEngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_core.core, "cache_stats", lambda: 1 / 0)
    with pytest.raises(EngineError) as caught:
        await client.call("GetCacheStats", b"")
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert tokens_in(await all_events(client, token_request([1, 2]))) == expected_tokens([1, 2], 5)


async def test_stops_when_no_front_is_left(tmp_path: Path) -> None:
    core = HashCore(tmp_path, orphan_grace_s=3600.0)
    front = ZmqEngineClient(core.endpoint, peer_name="rhizome-engine-front")
    await front.load()
    core.orphans.grace_s = 0.5  # not before there is a front: it may be long in coming
    started = time.monotonic()
    while time.monotonic() - started < 1.0:
        assert core.running
        await front.load()
    await front.close()
    await eventually(lambda: not core.running)
    assert core.failure is None


@pytest.mark.parametrize("method", ["Drain", "FlushCache", "WarmPrefix", "UnpinPrefix", "ListPins"])
async def test_administration_is_refused_to_peers_from_elsewhere(
    hash_core: HashCore, client: ZmqEngineClient, method: str
) -> None:
    context = zmq.Context()
    stranger = DealerConnection(context, hash_core.endpoint, identity=RELAYED_IDENTITY_PREFIX + b"1")
    try:
        # Whatever it calls itself.
        hello = Hello(protocol_version=PROTOCOL_VERSION, peer_name="rhizome-engine-front", initial_credit=1)
        await stranger.send(ClientFrame(hello=hello).SerializeToString())
        await stranger.send(ClientFrame(call=Call(call_id="c", method=method)).SerializeToString())
        results: list[CallResult] = []
        while not results:
            frame = EngineFrame.FromString(await asyncio.wait_for(stranger.receive(), 20))
            results += frame.call_results
        assert results[0].status.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    finally:
        stranger.close()
        context.destroy(linger=0)
    assert (await all_events(client, token_request([1])))[-1].HasField("finished")


async def test_an_id_used_again_at_once_stays_known(hash_core: HashCore) -> None:
    context = zmq.Context()
    hasty = DealerConnection(context, hash_core.endpoint)
    hash_core.slow_down()
    request = token_request([1, 2, 3], max_tokens=ENDLESS)
    request.request_id = "again"
    try:
        await hasty.send(ClientFrame(hello=Hello(initial_credit=1000)).SerializeToString())
        for frame in (
            ClientFrame(submit=Submit(request=request)),
            ClientFrame(cancel=Cancel(request_id="again")),
            ClientFrame(submit=Submit(request=request)),
            ClientFrame(call=Call(call_id="c", method="Drain", request=_drain_after_ms(200))),
        ):
            await hasty.send(frame.SerializeToString())
        cancelled = 0
        while cancelled < 2:
            frame = EngineFrame.FromString(await asyncio.wait_for(hasty.receive(), 20))
            cancelled += sum(
                event.response.finished.reason == FINISH_REASON_CANCELLED for event in frame.events
            )
    finally:
        hasty.close()
        context.destroy(linger=0)


def _drain_after_ms(milliseconds: int) -> bytes:
    request = DrainRequest()
    request.timeout.FromMilliseconds(milliseconds)
    return request.SerializeToString()


async def test_an_oversized_request_is_refused_and_the_others_go_on(client: ZmqEngineClient) -> None:
    other = client.generate(token_request([1], max_tokens=ENDLESS))
    await anext(other)
    for request in (
        GenerateRequest(text="x" * (64 * 1024 * 1024)),
        GenerateRequest(model="\n" * (32 * 1024 * 1024)),  # the error must not quote all of it
    ):
        with pytest.raises(EngineError) as caught:
            await all_events(client, request)
        assert caught.value.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert len(caught.value.message) < 2000
    assert (await _collect(other))[-1].finished.reason == FINISH_REASON_LENGTH
