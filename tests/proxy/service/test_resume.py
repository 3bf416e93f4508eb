"""A request whose engine is lost after its first event goes on at another one, and nobody can tell."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.proxy.conftest import Cluster
from tests.proxy.scripted_engine import ScriptedEngine
from tests.proxy.service.resumable_answers import (
    CACHED,
    LOST,
    PROMPT,
    SEED,
    ask,
    check_whole,
    losing,
    submit,
    whole_answer,
)

from rhizome.engine.v1.engine_service_pb2 import AbortRequest
from rhizome.engine.v1.frames_pb2 import RequestEvent
from rhizome.engine.v1.generate_pb2 import (
    FINISH_REASON_CANCELLED,
    GenerateResponse,
    TokenDelta,
)
from rhizome_backends.spec import BackendSpec
from rhizome_testing.hash_runner import expected_tokens
from rhizome_transport.errors import EngineError


@settings(max_examples=30, deadline=None)
@given(
    breaks=st.lists(st.integers(0, 12), max_size=3),
    kill=st.booleans(),
    group=st.integers(1, 3),
    logprobs=st.booleans(),
    scores=st.booleans(),
)
def test_an_answer_is_the_same_wherever_its_engines_are_lost(breaks, kill, group, logprobs, scores):
    request = ask()
    if logprobs:
        request.sampling.top_logprobs = 0
    if scores:
        request.prompt_logprobs = 0

    async def run() -> None:
        cluster = Cluster()
        try:
            script = losing(list(breaks), kill=kill, group=group)
            engines = [await cluster.engine(script) for _ in range(4)]
            proxy = await cluster.proxy(*engines)
            peer = await cluster.peer(proxy)
            await submit(peer, request)
            await peer.outcome("r1")
            events = peer.events("r1")
            check_whole(events, request)
            seen_loss = [at for at in breaks if at]
            if seen_loss and not kill:
                assert events[-1].response.finished.usage.cached_tokens == CACHED
                went_on = any(one.request.resumed_tokens for engine in engines for one in engine.submits)
                assert proxy.router.counts.resumes >= went_on
            assert all(backend.in_flight == 0 for backend in proxy.registry)
        finally:
            await cluster.stop()

    asyncio.run(run())


async def test_the_next_engine_is_asked_for_the_rest_with_the_seed_in_use(cluster):
    script = losing([4])
    first, second = await cluster.engine(script), await cluster.engine(script)
    peer = await cluster.peer(await cluster.proxy(first, second))
    request = ask(prompt_logprobs=None)
    request.sampling.presence_penalty = 0.5
    await submit(peer, request, timeout={"seconds": 60})
    await peer.outcome("r1")
    again = (first.submits + second.submits)[:]
    again.sort(key=lambda one: one.request.resumed_tokens)
    resumed = again[1]
    assert list(resumed.request.token_ids.ids) == PROMPT + expected_tokens(PROMPT, 3)
    assert (resumed.request.resumed_tokens, resumed.request.sampling.seed) == (3, SEED)
    assert (resumed.request.sampling.presence_penalty, resumed.request.stop.max_tokens) == (0.5, 8)
    assert 0 < resumed.timeout.ToNanoseconds() < 60e9


async def test_a_request_that_another_proxy_resumed_is_resumed_again(cluster):
    script = losing([3])
    peer = await cluster.peer(await cluster.proxy(await cluster.engine(script), await cluster.engine(script)))
    request = ask(prompt_logprobs=None)
    request.token_ids.ids.extend(expected_tokens(PROMPT, 2))
    request.resumed_tokens = 2
    await submit(peer, request)
    final = await peer.outcome("r1")
    assert list(peer.tokens("r1")) == expected_tokens(PROMPT, 8)[2:]
    assert final.response.finished.usage.completion_tokens == 8
    assert final.response.finished.usage.prompt_tokens == len(PROMPT)


async def test_timings_are_those_of_the_whole(cluster, script, eventually):
    killers, seen = [], asyncio.Event()

    async def start_and_hold(peer, submit):
        events = whole_answer(submit.request)
        for event in events[:3]:
            await peer.send(RequestEvent(request_id="r1", response=event))
        await seen.wait()
        await asyncio.sleep(0.1)
        killers.append(asyncio.create_task(peer.engine.kill()))

    first = await cluster.engine(start_and_hold)
    second = await cluster.engine(start_and_hold)
    peer = await cluster.peer(await cluster.proxy(first, second))
    began = time.monotonic()
    await submit(peer, ask())
    await eventually(lambda: bool(first.submits or second.submits))
    (second if first.submits else first).script = losing([])
    await eventually(lambda: bool(peer.tokens("r1")))
    first_token_s = time.monotonic() - began
    seen.set()
    times = (await peer.outcome("r1")).response.finished.timings
    assert times.decode_time.ToMilliseconds() >= 90  # the second engine says 1 ms
    assert times.time_to_first_token.ToMilliseconds() < 1e3 * first_token_s + 10


async def test_an_opt_out_ends_the_request_as_aborted(cluster):
    script = losing([3])
    proxy = await cluster.proxy(await cluster.engine(script), await cluster.engine(script))
    peer = await cluster.peer(proxy)
    await submit(peer, ask(no_resume=True))
    error = await peer.error("r1")
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    assert len(peer.tokens("r1")) == 2
    assert proxy.router.counts.resumes == 0


async def test_a_request_that_kills_engines_is_given_up_and_says_so(cluster):
    script = losing([3] * 9)
    engines = [await cluster.engine(script) for _ in range(6)]
    proxy = await cluster.proxy(*engines, max_resumes=2)
    peer = await cluster.peer(proxy)
    await submit(peer, ask(max_tokens=30))
    error = await peer.error("r1")
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "CRASH_LOOP")
    assert "3 engines were lost" in error.message
    assert list(peer.tokens("r1")) == expected_tokens(PROMPT, len(peer.tokens("r1")))
    assert sum(len(engine.submits) for engine in engines) == 3
    assert (proxy.router.counts.resumes, proxy.router.counts.crash_loops) == (2, 1)


async def test_a_request_that_kills_engines_before_its_first_event_spares_the_rest(cluster):
    script = losing([0] * 20, kill=True)
    engines = [await cluster.engine(script) for _ in range(8)]
    peer = await cluster.peer(await cluster.proxy(*engines))
    await submit(peer, ask())
    assert (await peer.error("r1")).reason == "CRASH_LOOP"
    assert sum(len(engine.submits) for engine in engines) == 4


async def test_without_another_engine_it_waits_for_one(cluster, eventually):
    engine = await cluster.engine(losing([4], kill=True))
    peer = await cluster.peer(await cluster.proxy(engine, resume_wait_s=30.0))
    await submit(peer, ask())
    await eventually(lambda: engine._server is None)
    await engine.start()
    await peer.outcome("r1")
    check_whole(peer.events("r1"), ask())


async def test_it_waits_while_all_others_are_full(cluster, script, eventually):
    first = await cluster.engine(losing([4]))
    proxy = await cluster.proxy(first, resume_wait_s=30.0)
    other = await cluster.engine(script.refuse(script.full))
    first.script = losing([4])
    peer = await cluster.peer(proxy)
    proxy.registry.add(BackendSpec(other.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    lease = proxy.registry.get(other.address).lease()

    async def gone(peer, submit):
        await losing([4])(peer, submit)
        first.set_serving(False)

    first.script = gone
    await submit(peer, ask())
    await eventually(lambda: len(other.submits) >= 2)
    lease.release()
    other.script = losing([])
    await peer.outcome("r1")
    check_whole(peer.events("r1"), ask())


async def test_after_the_wait_the_answer_is_told_to_be_incomplete(cluster):
    engine = await cluster.engine(losing([3], kill=True))
    proxy = await cluster.proxy(engine, resume_wait_s=0.0)
    peer = await cluster.peer(proxy)
    await submit(peer, ask())
    error = await peer.error("r1")
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    assert engine.address in error.message
    assert proxy.router.counts.resumes == 0  # nobody took it
    assert [backend.resumed for backend in proxy.registry] == [0]


async def test_a_cancel_ends_a_request_that_waits_for_an_engine(cluster, eventually):
    engine = await cluster.engine(losing([3], kill=True))
    proxy = await cluster.proxy(engine, resume_wait_s=60.0)
    peer = await cluster.peer(proxy)
    await submit(peer, ask())
    await eventually(lambda: engine._server is None and not proxy.registry.ready())
    await peer.cancel("r1")
    final = await peer.outcome("r1")
    assert final.response.finished.reason == FINISH_REASON_CANCELLED


@pytest.mark.parametrize("how", ["cancel", "abort"])
async def test_a_cancelled_request_is_never_resumed(cluster, script, eventually, how):
    first = await cluster.engine(script.start_and_hold, answers_cancel=False)
    second = await cluster.engine(script.start_and_hold, answers_cancel=False)
    proxy = await cluster.proxy(first, second)
    peer = await cluster.peer(proxy)
    await submit(peer, ask())
    await peer.wait_events("r1", 1)
    holder = first if first.submits else second
    if how == "cancel":
        await peer.cancel("r1")
        await eventually(lambda: holder.cancels == ["r1"])
    else:
        await cluster.stub(proxy).Abort(AbortRequest(request_ids=["r1"]))
    await holder.kill()
    final = await peer.outcome("r1")
    assert final.response.finished.reason == FINISH_REASON_CANCELLED
    assert len(first.submits) + len(second.submits) == 1


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "INTERNAL", "DEADLINE_EXCEEDED"])
async def test_what_another_engine_would_say_as_well_is_not_resumed(cluster, code):
    error = EngineError(grpc.StatusCode[code], "no")

    async def fail(peer, submit):
        await peer.send(RequestEvent(request_id="r1", response=whole_answer(submit.request)[0]))
        await peer.send(RequestEvent(request_id="r1", status=error.to_status(), final=True))

    engines = [await cluster.engine(fail) for _ in range(2)]
    peer = await cluster.peer(await cluster.proxy(*engines))
    await submit(peer, ask())
    assert (await peer.error("r1")).code is error.code
    assert sum(len(engine.submits) for engine in engines) == 1


async def test_what_an_engine_cancels_that_goes_away_goes_on_elsewhere(cluster, script, eventually):
    engines = [await cluster.engine() for _ in range(2)]
    proxy = await cluster.proxy(*engines)

    async def drained(peer, submit):
        for event in whole_answer(submit.request)[:3]:
            await peer.send(RequestEvent(request_id="r1", response=event))
        peer.engine.set_serving(False)
        await eventually(lambda: len(proxy.registry.ready()) == 1)
        next(one for one in engines if one is not peer.engine).script = losing([])
        await peer.send(script.finished("r1", FINISH_REASON_CANCELLED))

    for engine in engines:
        engine.script = drained
    peer = await cluster.peer(proxy)
    await submit(peer, ask())
    await peer.outcome("r1")
    check_whole(peer.events("r1"), ask())


async def test_neighbours_in_the_frame_of_a_lost_request_are_not_held_up(cluster, eventually):
    async def one_lost(peer, submit):
        request_id = submit.request.request_id
        events = whole_answer(submit.request)
        if submit.request.resumed_tokens or request_id == "calm":
            sent = events if submit.request.resumed_tokens else events[:2]
            for event in sent:
                final = event.HasField("finished")
                await peer.send(RequestEvent(request_id=request_id, response=event, final=final))
            return
        await peer.send(RequestEvent(request_id=request_id, response=events[0]))
        await peer.send(
            RequestEvent(request_id=request_id, response=events[1]),
            RequestEvent(request_id=request_id, status=LOST.to_status(), final=True),
            RequestEvent(request_id="calm", response=GenerateResponse(delta=TokenDelta(token_ids=[9]))),
        )

    first = await cluster.engine(one_lost)
    proxy = await cluster.proxy(first)
    peer = await cluster.peer(proxy)
    calm = ask()
    calm.request_id = "calm"
    await submit(peer, calm)
    await peer.wait_events("calm", 2)
    await submit(peer, ask())
    await peer.outcome("r1")
    check_whole(peer.events("r1"), ask())
    await eventually(lambda: peer.tokens("calm")[-1:] == (9,))


async def test_generate_resumes_what_came_as_tokens_and_nothing_else(cluster):
    breaks = [4, 4]

    class Engine(ScriptedEngine):
        async def Generate(self, request, context):  # noqa: N802
            self.generates.append((request, {}, None))
            events = whole_answer(request)
            sent = breaks.pop() if breaks else len(events)
            for event in events[:sent]:
                yield event
            if sent < len(events):
                raise LOST

    for _ in range(2):
        engine = Engine()
        await engine.start()
        cluster.engines.append(engine)
    proxy = await cluster.proxy(*cluster.engines)
    events = [event async for event in cluster.stub(proxy).Generate(ask())]
    check_whole([RequestEvent(response=one, final=one.HasField("finished")) for one in events], ask())
    breaks[:] = [4]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        _ = [event async for event in cluster.stub(proxy).Generate(ask(no_resume=True))]
    assert caught.value.code() is grpc.StatusCode.ABORTED
