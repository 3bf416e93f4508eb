"""The Connect stream when engines refuse, break or are not there."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from tests.proxy.scripted_engine import TOKENS

from rhizome_transport.errors import EngineError

FULL = EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full", reason="QUEUE_FULL", retry_after_s=3.0)
GONE = EngineError(grpc.StatusCode.UNAVAILABLE, "the core is starting", reason="MODEL_LOADING")


@pytest.mark.parametrize("refusal", [FULL, GONE], ids=lambda error: error.code.name)
async def test_a_refusal_before_the_first_event_goes_to_the_next_engine_unseen(cluster, script, refusal):
    first = await cluster.engine(script.refuse(refusal))
    second = await cluster.engine(script.refuse(refusal))
    third = await cluster.engine()
    peer = await cluster.peer(await cluster.proxy(first, second, third))
    for number in range(24):
        await peer.submit(f"r{number}")
        await peer.outcome(f"r{number}")
        assert peer.tokens(f"r{number}") == TOKENS
        assert len(peer.events(f"r{number}")) == 5
    assert first.submits and second.submits and len(third.submits) == 24


async def test_a_refusal_does_not_hold_back_its_neighbours_in_the_frame(cluster, script):
    async def refuse_one(peer, submit):
        if submit.request.request_id == "keep":
            await peer.send(script.started("keep"))
        else:
            await peer.send(
                script.delta("keep", 1),
                script.refused(submit.request.request_id, FULL),
                script.delta("keep", 2),
            )

    first = await cluster.engine(refuse_one)
    peer = await cluster.peer(await cluster.proxy(first))
    await peer.submit("keep")
    await peer.wait_events("keep", 1)
    await peer.submit("other")
    assert (await peer.error("other")).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    await peer.wait_events("keep", 3)
    assert peer.tokens("keep") == (1, 2)


async def test_what_the_caller_did_wrong_is_not_tried_elsewhere(cluster, script):
    wrong = EngineError(grpc.StatusCode.INVALID_ARGUMENT, "top_p is 7", param="top_p")
    engines = [await cluster.engine(script.refuse(wrong)) for _ in range(2)]
    peer = await cluster.peer(await cluster.proxy(*engines))
    await peer.submit("r1")
    error = await peer.error("r1")
    assert (error.code, error.message, error.param) == (wrong.code, wrong.message, wrong.param)
    assert sum(len(engine.submits) for engine in engines) == 1


async def test_all_engines_full_is_resource_exhausted_with_their_hint(cluster, script):
    engines = [await cluster.engine(script.refuse(FULL)) for _ in range(2)]
    peer = await cluster.peer(await cluster.proxy(*engines))
    await peer.submit("r1")
    error = await peer.error("r1")
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (error.reason, error.retry_after_s) == ("QUEUE_FULL", 3.0)
    assert [len(engine.submits) for engine in engines] == [1, 1]
    assert len(peer.events("r1")) == 1


async def test_of_several_hints_the_soonest_is_told(cluster, script):
    hints = (7.0, 0.5, 3.0)
    errors = [EngineError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_after_s=hint) for hint in hints]
    engines = [await cluster.engine(script.refuse(error)) for error in errors]
    peer = await cluster.peer(await cluster.proxy(*engines))
    await peer.submit("r1")
    assert (await peer.error("r1")).retry_after_s == 0.5


async def test_no_engine_ready_says_which_are_known_and_why_not(cluster):
    engine = await cluster.engine()
    engine.set_serving(False)
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    error = await peer.error("r1")
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert error.retry_after_s == 1.0
    assert "1 known" in error.message and engine.address in error.message and "NOT_SERVING" in error.message


async def test_an_engine_lost_before_the_first_event_is_replaced_unseen(cluster, script, eventually):
    first = await cluster.engine(script.hold)
    second = await cluster.engine(script.hold)
    peer = await cluster.peer(await cluster.proxy(first, second))
    for number in range(8):
        await peer.submit(f"r{number}")
    await eventually(lambda: len(first.submits) + len(second.submits) == 8)
    second.script = script.answer
    await first.kill()
    moved = [submit.request.request_id for submit in first.submits]
    assert moved
    for request_id in moved:
        assert (await peer.outcome(request_id)).response.HasField("finished")
        assert peer.tokens(request_id) == TOKENS


async def test_an_engine_lost_after_the_first_event_ends_what_may_not_be_resumed(cluster, script):
    engine = await cluster.engine(script.start_and_hold)
    other = await cluster.engine(script.start_and_hold)
    peer = await cluster.peer(await cluster.proxy(engine, other, max_resumes=0))
    await peer.submit("r1")
    await peer.submit("r2")
    await peer.wait_events("r1", 1)
    await peer.wait_events("r2", 1)
    lost = engine.submits[0].request.request_id
    await engine.kill()
    error = await peer.error(lost)
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    assert engine.address in error.message
    assert len(other.submits) == 1
    assert peer.final(other.submits[0].request.request_id) is None


async def test_unavailable_after_the_first_event_becomes_aborted(cluster, script):
    async def start_and_die(peer, submit):
        await peer.send(script.started(submit.request.request_id))
        await peer.send(script.refused(submit.request.request_id, GONE))

    engine = await cluster.engine(start_and_die)
    peer = await cluster.peer(await cluster.proxy(engine, resume_wait_s=0.0))
    await peer.submit("r1")
    error = await peer.error("r1")
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")


async def test_a_killed_engine_gets_nothing_new_and_comes_back(cluster, eventually):
    first, second = await cluster.engine(), await cluster.engine()
    proxy = await cluster.proxy(first, second)
    peer = await cluster.peer(proxy)
    await first.kill()
    for number in range(10):
        await peer.submit(f"a{number}")
        await peer.outcome(f"a{number}")
        assert peer.tokens(f"a{number}") == TOKENS
    await first.start()
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    seen = len(first.submits)
    for number in range(20):
        await peer.submit(f"b{number}")
        await peer.outcome(f"b{number}")
    assert len(first.submits) > seen
