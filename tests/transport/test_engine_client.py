"""What every EngineClient promises, held to over gRPC and over ZeroMQ."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import aclosing

import grpc
import psutil
import pytest
import zmq

from rhizome.common.v1.common_pb2 import TraceContext
from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_STOP,
    GenerateRequest,
    GenerateResponse,
    TokenIds,
)
from rhizome_testing.scripted_engine import TOKENIZER_FILES, ScriptedCore
from rhizome_testing.scripted_front import ScriptedFront
from rhizome_transport.errors import EngineError
from rhizome_transport.frames import FrameMultiplexer
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.zmq_link import ZmqLink


def ask(request_id: str, tokens: int = 5) -> GenerateRequest:
    return GenerateRequest(request_id=request_id, token_ids=TokenIds(ids=range(tokens)))


def kinds(events: list[GenerateResponse]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def tokens_of(events: list[GenerateResponse]) -> list[int]:
    return [token for event in events for token in event.delta.token_ids]


async def test_streams_started_deltas_and_finished_in_order(wired):
    events = [event async for event in wired.client.generate(ask("count-1", 20))]
    order = kinds(events)
    assert order[0] == "started"
    assert order[-1] == "finished"
    assert set(order[1:-1]) == {"delta"}
    assert tokens_of(events) == list(range(20))
    assert events[-1].finished.reason == FINISH_REASON_STOP


async def test_fills_in_a_missing_request_id(wired):
    request = ask("", 3)
    [event async for event in wired.client.generate(request)]
    assert request.request_id
    assert wired.core.script.submits[0].request.request_id == request.request_id


async def test_many_requests_share_the_stream_without_mixing(wired):
    async def run(number: int) -> list[int]:
        request = GenerateRequest(
            request_id=f"count-{number}", token_ids=TokenIds(ids=range(number, number + 30))
        )
        return tokens_of([event async for event in wired.client.generate(request)])

    answers = await asyncio.gather(*(run(number) for number in range(40)))
    assert answers == [list(range(number, number + 30)) for number in range(40)]
    assert wired.core.peers == 1


async def test_closing_the_generator_cancels_in_the_engine(wired, until):
    async with aclosing(wired.client.generate(ask("hang-1"))) as events:
        async for event in events:
            assert event.HasField("started")
            break
    await until(lambda: wired.core.script.cancels == ["hang-1"])
    await until(lambda: wired.core.open_requests == 0)


async def test_cancelling_the_reading_task_cancels_in_the_engine(wired, until):
    async def read() -> None:
        async for _ in wired.client.generate(ask("hang-2")):
            pass

    task = asyncio.create_task(read())
    await until(lambda: wired.core.open_requests == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: wired.core.script.cancels == ["hang-2"])


async def test_a_cancelled_request_still_gets_its_finished_event(wired):
    events = []
    async for event in wired.client.generate(ask("hang-3")):
        events.append(event)
        if event.HasField("started"):
            await wired.client.cancel("hang-3")
            await wired.client.cancel("nobody")
    assert kinds(events) == ["started", "finished"]
    assert events[-1].finished.reason == FINISH_REASON_CANCELLED


async def test_a_finished_request_is_not_cancelled(wired, until):
    [event async for event in wired.client.generate(ask("count-2"))]
    [event async for event in wired.client.generate(ask("count-3"))]
    assert wired.core.script.cancels == []


async def test_errors_keep_code_reason_param_and_delay(wired):
    with pytest.raises(EngineError) as caught:
        [event async for event in wired.client.generate(ask("refuse-1"))]
    error = caught.value
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (error.reason, error.param, error.retry_after_s) == ("QUEUE_FULL", "priority", 1.5)
    assert "queue is full" in error.message


async def test_what_came_before_an_error_is_delivered_first(wired):
    events = []
    with pytest.raises(EngineError) as caught:
        async for event in wired.client.generate(ask("break-1")):
            events.append(event)  # noqa: PERF401 - what came before the error counts
    assert kinds(events) == ["started", "delta"]
    assert caught.value.code is grpc.StatusCode.INTERNAL


async def test_the_time_left_travels_with_the_request(wired):
    began = time.monotonic()
    [event async for event in wired.client.generate(ask("count-4"), timeout_s=30.0)]
    timeout = wired.core.script.submits[0].timeout
    took = time.monotonic() - began
    assert 30.0 - took <= timeout.seconds + timeout.nanos / 1e9 <= 30.0


async def test_no_deadline_means_no_timeout_field(wired):
    [event async for event in wired.client.generate(ask("count-5"))]
    assert not wired.core.script.submits[0].HasField("timeout")


async def test_an_engine_that_forgets_the_deadline_is_cancelled(wired, until):
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        [event async for event in wired.client.generate(ask("queue-1"), timeout_s=0.2)]
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 3.0
    await until(lambda: wired.core.script.cancels == ["queue-1"])


async def test_trace_context_arrives_as_sent(wired):
    trace = TraceContext(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", tracestate="vendor=1")
    [event async for event in wired.client.generate(ask("count-6"), trace=trace)]
    assert wired.core.script.submits[0].trace == trace


async def test_an_id_that_is_open_is_refused(wired):
    async with aclosing(wired.client.generate(ask("hang-4"))) as events:
        await anext(events)
        with pytest.raises(EngineError) as caught:
            [event async for event in wired.client.generate(ask("hang-4"))]
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS


async def test_an_id_is_free_again_once_its_cancelled_request_ended(wired, until):
    stream = wired.client.generate(ask("hang-7"))
    await anext(stream)
    await stream.aclose()
    with pytest.raises(EngineError) as caught:
        await anext(wired.client.generate(ask("hang-7")))
    assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
    await until(lambda: wired.client.frames.open_requests == 0)
    async with aclosing(wired.client.generate(ask("hang-7"))) as events:
        assert (await anext(events)).HasField("started")


async def test_a_slow_reader_gets_merged_deltas_and_loses_none(wired):
    events = []
    async with aclosing(wired.client.generate(ask("flood-1", 500))) as stream:
        async for event in stream:
            events.append(event)
            if len(events) == 1:
                # Another request runs to its end meanwhile: nobody waits for the slow reader.
                [other async for other in wired.client.generate(ask("count-7", 50))]
    assert tokens_of(events) == list(range(500))
    assert len(events) <= 4


async def test_more_frames_than_the_first_credit_arrive(wired):
    events = [event async for event in wired.client.generate(ask("count-8", 400))]
    assert tokens_of(events) == list(range(400))


async def test_model_info_tokenizer_and_load(wired):
    info = await wired.client.model_info()
    assert isinstance(info, GetModelInfoResponse)
    assert (info.model, info.instance_id) == ("scripted", "core-1")
    assert (await wired.client.tokenizer_files()).files == TOKENIZER_FILES
    assert (await wired.client.load()).running_requests == 3


async def test_unknown_models_are_not_found(wired):
    with pytest.raises(EngineError) as caught:
        await wired.client.model_info("other")
    assert (caught.value.code, caught.value.param) == (grpc.StatusCode.NOT_FOUND, "model")


async def test_a_core_that_dies_fails_open_requests_by_what_they_had_seen(wired, until):
    untouched: list[EngineError] = []

    async def wait_in_queue() -> None:
        try:
            [event async for event in wired.client.generate(ask("queue-2"))]
        except EngineError as error:
            untouched.append(error)

    waiting = asyncio.create_task(wait_in_queue())
    with pytest.raises(EngineError) as caught:
        async for _ in wired.client.generate(ask("hang-5")):
            await until(lambda: wired.core.open_requests == 2)
            wired.core.stop()
    await waiting
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    assert untouched[0].code is grpc.StatusCode.UNAVAILABLE


async def test_reconnects_to_a_core_that_was_started_anew(wired, until):
    [event async for event in wired.client.generate(ask("count-9"))]
    assert wired.client.frames.instance_id == "core-1"
    wired.core.stop()
    await until(lambda: not wired.client.frames.connected)
    wired.core = ScriptedCore(wired.core.endpoint, instance_id="core-2")
    events = [event async for event in wired.client.generate(ask("count-10"))]
    assert tokens_of(events) == list(range(5))
    assert wired.client.frames.instance_id == "core-2"
    assert (await wired.client.model_info()).instance_id == "core-2"


@pytest.mark.parametrize("connect_timeout_s", [1.0])
async def test_without_a_core_a_request_is_unavailable_after_the_connect_timeout(wired):
    wired.core.stop()
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        [event async for event in wired.client.generate(ask("count-11"))]
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert 0.9 < time.monotonic() - began < 3.0


async def seconds_behind_one_that_fails(endpoint: str) -> float:
    """How long a new client takes to connect while another one waits long between its attempts."""
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
    early = GrpcEngineClient(address, peer_name="early", connect_timeout_s=3.0)
    with pytest.raises(EngineError):
        await early.frames.connection()
    core, front = ScriptedCore(endpoint), ScriptedFront(endpoint, address)
    await front.start()
    late = GrpcEngineClient(address, peer_name="late", connect_timeout_s=20.0)
    try:
        began = time.monotonic()
        assert tokens_of([event async for event in late.generate(ask("count-14"))]) == list(range(5))
        return time.monotonic() - began
    finally:
        await early.close()
        await late.close()
        await front.stop()
        core.stop()


async def test_one_clients_failures_do_not_hold_up_another_one(endpoint):
    for _ in range(3):  # a busy machine may hold one up, but hardly each time
        if (took := await seconds_behind_one_that_fails(endpoint)) < 1.0:
            break
    assert took < 1.0


async def test_two_clients_share_no_connection(endpoint):
    core, front = ScriptedCore(endpoint), ScriptedFront(endpoint)
    port = int((await front.start()).rpartition(":")[2])
    clients = [GrpcEngineClient(front.target, peer_name=name, connect_timeout_s=20.0) for name in "ab"]
    try:
        for client in clients:
            await client.frames.connection()
        sockets = psutil.Process().net_connections("tcp")
        assert len([one for one in sockets if one.raddr and one.raddr.port == port]) == 2
    finally:
        for client in clients:
            await client.close()
        await front.stop()
        core.stop()


async def test_who_is_going_away_keeps_what_it_has_and_the_next_request_goes_out_again(wired, until):
    old = wired.client.generate(ask("hang-15"))
    await anext(old)
    wired.core.script.draining = 1
    events = [event async for event in wired.client.generate(ask("count-16"))]
    assert tokens_of(events) == list(range(5))
    assert [one.request.request_id for one in wired.core.script.submits] == [
        "hang-15",
        "count-16",
        "count-16",
    ]
    assert wired.core.peers == 2
    assert wired.client.frames.open_requests == 1
    await wired.client.frames.cancel("hang-15")
    assert [kind async for kind in old][-1].finished.reason == FINISH_REASON_CANCELLED
    await until(lambda: wired.core.peers == 1)
    assert tokens_of([event async for event in wired.client.generate(ask("count-17"))]) == list(range(5))


async def test_refused_twice_by_who_is_going_away_is_the_answer(wired, until):
    wired.core.script.draining = 2
    with pytest.raises(EngineError) as caught:
        [event async for event in wired.client.generate(ask("count-18"))]
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert len(wired.core.script.submits) == 2
    assert wired.client.frames.open_requests == 0
    assert tokens_of([event async for event in wired.client.generate(ask("count-19"))]) == list(range(5))


async def test_closing_while_a_request_goes_out_again_loses_nothing(wired, until):
    wired.core.script.draining = 1
    stream = wired.client.generate(ask("hang-20"))
    waiting = asyncio.ensure_future(anext(stream))
    await until(lambda: wired.core.script.submits)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: wired.core.open_requests == 0 and wired.client.frames.open_requests == 0)


async def test_the_engine_notices_that_a_client_vanished(wired, until):
    stream = wired.client.generate(ask("hang-6"))
    await anext(stream)
    await wired.client.close()
    await until(lambda: wired.core.open_requests == 0)
    assert wired.core.script.lost + wired.core.script.cancels == ["hang-6"]
    with pytest.raises(EngineError):
        await anext(stream)


async def test_wait_ready_returns_and_gives_up(wired):
    await wired.client.wait_ready(5.0)
    await wired.client.close()


async def test_an_unexpected_failure_to_connect_is_tried_again(endpoint):
    core = ScriptedCore(endpoint)
    context = zmq.Context()
    failures = [ValueError("surprise")]

    async def open_link():
        if failures:
            raise failures.pop()
        return await ZmqLink.open(context, endpoint)

    frames = FrameMultiplexer(open_link, target=endpoint, peer_name="test")
    events = [event async for event in frames.generate(ask("count-2"))]
    assert events[-1].HasField("finished")
    await frames.close()
    context.destroy(linger=0)
    core.stop()
