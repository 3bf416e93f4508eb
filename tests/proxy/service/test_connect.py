"""The Connect stream: what a peer sees of the engines behind the proxy."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from tests.proxy.scripted_engine import TOKENS

from rhizome.engine.v1.frames_pb2 import Call, EngineFrame, Hello
from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED, GenerateRequest
from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.spec import BackendSpec
from rhizome_transport.channel import PROTOCOL_VERSION
from rhizome_transport.errors import EngineError
from rhizome_transport.wire import field

FULL = EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", reason="QUEUE_FULL", retry_after_s=3.0)
GONE = EngineError(grpc.StatusCode.UNAVAILABLE, "the core is starting", reason="MODEL_LOADING")


async def test_streams_an_answer_through(cluster):
    engine = await cluster.engine()
    peer = await cluster.peer(await cluster.proxy(engine))
    await peer.submit("r1")
    final = await peer.outcome("r1")
    assert final.response.HasField("finished")
    assert peer.tokens("r1") == TOKENS
    assert engine.submits[0].request.token_ids.ids == [1, 2, 3]


async def test_passes_frames_on_as_the_very_same_bytes(cluster, script):
    sent = []

    async def speak(peer, submit):
        request_id = submit.request.request_id
        sent.append(await peer.send(script.started(request_id)))
        # A field that this release does not know, and two deltas in one frame.
        frame = EngineFrame(events=[script.delta(request_id, 1), script.delta(request_id, 2)])
        frame.events[0].MergeFromString(b"\xfa\x7f\x03new")
        sent.append(frame.SerializeToString())
        await peer.context.write(sent[-1])
        sent.append(await peer.send(script.finished(request_id)))

    peer = await cluster.peer(await cluster.proxy(await cluster.engine(speak)))
    await peer.submit("r1")
    await peer.outcome("r1")
    assert [frame for frame in peer.frames if EngineFrame.FromString(frame).events] == sent


async def test_introduces_itself_and_not_the_engine(cluster):
    engine = await cluster.engine()
    peer = await cluster.peer(await cluster.proxy(engine))
    await peer.submit("r1")
    await peer.outcome("r1")
    welcomes = [frame.welcome for frame in peer.parsed if frame.HasField("welcome")]
    assert len(welcomes) == 1 and peer.parsed[0].HasField("welcome")
    assert welcomes[0].protocol_version == PROTOCOL_VERSION
    assert welcomes[0].instance_id not in ("", "core")
    assert engine.peers[0].peer_name == "tester"


async def test_keeps_load_reports_for_itself(cluster, script):
    async def speak(peer, submit):
        request_id = submit.request.request_id
        await peer.send(
            script.started(request_id), load=Load(instance_id="core", running_requests=9, waiting_requests=0)
        )
        await peer.send(script.finished(request_id))

    proxy = await cluster.proxy(await cluster.engine(speak), poll_interval_s=60)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.outcome("r1")
    assert [event.WhichOneof("outcome") for event in peer.events("r1")] == ["response", "response"]
    assert not any(frame.HasField("load") for frame in peer.parsed)
    assert next(iter(proxy.registry)).report.load.running_requests == 9


async def test_cancel_reaches_the_engine_and_its_answer_the_peer(cluster, script):
    engines = [await cluster.engine(script.start_and_hold) for _ in range(2)]
    peer = await cluster.peer(await cluster.proxy(*engines))
    await peer.submit("r1")
    await peer.wait_events("r1", 1)
    await peer.cancel("r1")
    final = await peer.outcome("r1")
    assert final.response.finished.reason == FINISH_REASON_CANCELLED
    assert sorted(engine.cancels for engine in engines) == [[], ["r1"]]
    await peer.cancel("r1")  # it may just have finished: ignored
    await peer.ping(1)


async def test_a_cancelled_request_is_not_sent_elsewhere(cluster, script, eventually):
    async def refuse_later(peer, submit):
        await eventually(lambda: bool(engine.cancels))
        await peer.send(script.refused(submit.request.request_id, GONE))

    engine = await cluster.engine(refuse_later)
    engine.answers_cancel = False
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await eventually(lambda: bool(engine.submits))
    other = await cluster.engine()
    proxy.registry.add(BackendSpec(other.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    await peer.cancel("r1")
    final = await peer.outcome("r1")
    assert final.response.finished.reason == FINISH_REASON_CANCELLED
    assert not other.submits


async def test_a_peer_that_vanishes_frees_everything_upstream(cluster, script, eventually):
    engines = [await cluster.engine(script.start_and_hold) for _ in range(2)]
    proxy = await cluster.proxy(*engines)
    peer, bystander = await cluster.peer(proxy), await cluster.peer(proxy)
    for number in range(4):
        await peer.submit(f"r{number}")
    await bystander.submit("r0")
    await eventually(lambda: sum(backend.in_flight for backend in proxy.registry) == 5)
    await bystander.wait_events("r0", 1)
    await peer.close()
    await eventually(lambda: sum(backend.in_flight for backend in proxy.registry) == 1)
    upstream = [up for engine in engines for up in engine.peers]
    await eventually(lambda: sum(not up.gone for up in upstream) == 1)
    assert bystander.final("r0") is None


async def test_peers_may_use_the_same_request_ids(cluster):
    proxy = await cluster.proxy(await cluster.engine())
    one, two = await cluster.peer(proxy), await cluster.peer(proxy)
    await asyncio.gather(one.submit("same"), two.submit("same"))
    await asyncio.gather(one.outcome("same"), two.outcome("same"))
    assert one.tokens("same") == two.tokens("same") == TOKENS


async def test_a_peer_that_says_nothing_more_still_gets_its_answers(cluster, script, eventually):
    release = asyncio.Event()

    async def wait(peer, submit):
        await release.wait()
        await script.answer(peer, submit)

    engine = await cluster.engine(wait)
    peer = await cluster.peer(await cluster.proxy(engine))
    await peer.submit("r1")
    await eventually(lambda: bool(engine.submits))
    await peer.call.done_writing()
    release.set()
    await peer.outcome("r1")
    assert await peer.call.code() is grpc.StatusCode.OK


async def test_an_open_request_id_cannot_be_used_again(cluster, script):
    engine = await cluster.engine(script.start_and_hold)
    peer = await cluster.peer(await cluster.proxy(engine))
    await peer.submit("r1")
    await peer.wait_events("r1", 1)
    await peer.submit("r1")
    error = await peer.error("r1")
    assert (error.code, error.param) == (grpc.StatusCode.INVALID_ARGUMENT, "request_id")
    await peer.submit("")
    assert (await peer.error("")).param == "request_id"
    assert len(engine.submits) == 1


async def test_answers_pings_itself(cluster, eventually):
    peer = await cluster.peer(await cluster.proxy(await cluster.engine()))
    await peer.ping(42)
    await eventually(lambda: any(frame.pong.nonce == 42 for frame in peer.parsed))


async def test_refuses_call_frames_with_advice(cluster, eventually):
    peer = await cluster.peer(await cluster.proxy(await cluster.engine()))
    await peer.send(call=Call(call_id="c1", method="GetLoad"))
    await eventually(lambda: any(frame.call_results for frame in peer.parsed))
    result = next(frame.call_results[0] for frame in peer.parsed if frame.call_results)
    assert result.call_id == "c1" and result.final
    assert EngineError.from_status(result.status).code is grpc.StatusCode.UNIMPLEMENTED


async def test_events_wait_for_credit_and_pongs_do_not(cluster, script, eventually):
    async def chatter(peer, submit):
        await peer.send(script.started("r1"))
        for token in range(100):
            await eventually(lambda: peer.credit > 0)
            await peer.send(script.delta("r1", token))
        await peer.send(script.finished("r1"))

    engine = await cluster.engine(chatter)
    peer = await cluster.peer(await cluster.proxy(engine, window_frames=8), credit=2)
    await peer.submit("r1")
    await peer.wait_events("r1", 2)
    await eventually(lambda: engine.peers[0].credit == 0)  # the engine is held back as well
    await peer.ping(1)
    await eventually(lambda: any(frame.HasField("pong") for frame in peer.parsed))
    assert len(peer.events("r1")) == 2
    await peer.grant(3)
    await peer.wait_events("r1", 5)
    await peer.ping(2)
    await eventually(lambda: any(frame.pong.nonce == 2 for frame in peer.parsed))
    assert len(peer.events("r1")) == 5
    await peer.grant(1000)
    await peer.outcome("r1")
    assert peer.tokens("r1") == tuple(range(100))


async def test_hands_on_the_time_that_is_left(cluster, script, eventually):
    release = asyncio.Event()

    async def refuse_later(peer, submit):
        await release.wait()
        await peer.send(script.refused(submit.request.request_id, FULL))

    first = await cluster.engine(refuse_later)
    proxy = await cluster.proxy(first)
    peer = await cluster.peer(proxy)
    await peer.submit("r1", timeout=Duration(seconds=20))
    await peer.submit("r2")
    await eventually(lambda: len(first.submits) == 2)
    given = {submit.request.request_id: submit for submit in first.submits}
    first_s = given["r1"].timeout.ToNanoseconds() / 1e9
    assert 15 < first_s <= 20
    assert not given["r2"].HasField("timeout")
    second = await cluster.engine()
    proxy.registry.add(BackendSpec(second.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    release.set()
    await peer.outcome("r1")
    again = next(submit for submit in second.submits if submit.request.request_id == "r1")
    assert 0 < again.timeout.ToNanoseconds() / 1e9 < first_s


async def test_a_request_whose_time_ran_out_is_not_sent(cluster):
    engine = await cluster.engine()
    peer = await cluster.peer(await cluster.proxy(engine))
    await peer.submit("r1", timeout=Duration())
    assert (await peer.error("r1")).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not engine.submits


async def test_hands_on_the_trace(cluster, trace):
    engine = await cluster.engine()
    peer = await cluster.peer(await cluster.proxy(engine))
    await peer.submit("r1", trace=trace)
    await peer.outcome("r1")
    assert engine.submits[0].trace.traceparent.split("-")[1] == "ab" * 16
    assert engine.submits[0].trace.tracestate == "x=y"


async def test_asks_an_engine_that_serves_the_model(cluster):
    apple, pear = await cluster.engine(model="apple"), await cluster.engine(model="pear")
    peer = await cluster.peer(await cluster.proxy(apple, pear))
    for number in range(6):
        await peer.submit(f"r{number}", model="pear")
        await peer.outcome(f"r{number}")
    assert (len(apple.submits), len(pear.submits)) == (0, 6)
    await peer.submit("plum", model="plum")  # nobody has it: an engine may say so in its own words
    await peer.outcome("plum")


@pytest.mark.parametrize(
    ("first", "code", "text"),
    [
        (b"\xff\xff", "INVALID_ARGUMENT", "no ClientFrame"),
        (b"", "INVALID_ARGUMENT", "must be Hello"),
        (b"\x0a\x02\x08\x09", "FAILED_PRECONDITION", f"protocol {PROTOCOL_VERSION}"),
    ],
)
async def test_a_stream_begins_with_a_hello(cluster, first, code, text):
    proxy = await cluster.proxy(await cluster.engine())
    call = cluster.channel(proxy).stream_stream("/rhizome.engine.v1.EngineService/Connect")()
    await call.write(first)
    assert (await call.code()).name == code
    assert text in await call.details()


async def test_a_prompt_that_is_no_list_of_ids_ends_the_stream(cluster):
    engine = await cluster.engine()
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    broken = b"\x1a\x04\x12\x02\xff\xff"
    request = GenerateRequest(request_id="r1").SerializeToString() + broken
    await peer.call.write(field(2, field(1, request)))
    assert await peer.call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no ClientFrame" in await peer.call.details()
    assert not engine.submits and proxy.router.grpc.open == 0


async def test_a_second_hello_ends_the_stream(cluster):
    peer = await cluster.peer(await cluster.proxy(await cluster.engine()))
    await peer.send(hello=Hello(protocol_version=PROTOCOL_VERSION))
    assert await peer.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_draining_finishes_what_is_open_and_refuses_what_is_new(cluster, script, eventually):
    release = asyncio.Event()

    async def wait(peer, submit):
        await release.wait()
        await script.answer(peer, submit)

    engine = await cluster.engine(wait)
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    await peer.submit("old")
    await eventually(lambda: bool(engine.submits))
    stopping = asyncio.create_task(proxy.stop(20.0))
    await asyncio.sleep(0)
    await peer.submit("new")
    error = await peer.error("new")
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    release.set()
    await peer.outcome("old")
    assert peer.tokens("old") == TOKENS
    assert await stopping
    assert await peer.call.code() is grpc.StatusCode.OK
