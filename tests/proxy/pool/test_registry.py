"""The pool."""

from __future__ import annotations

import grpc
import pytest

from rhizome_backends.spec import BackendSpec


async def test_a_name_is_taken_once(cluster):
    engine = await cluster.engine()
    proxy = await cluster.proxy(engine)
    with pytest.raises(ValueError, match="exists; remove it first"):
        proxy.registry.add(BackendSpec(engine.address))


async def test_removing_the_only_engine_breaks_what_is_open_there(cluster, script):
    engine = await cluster.engine(script.start_and_hold)
    proxy = await cluster.proxy(engine, resume_wait_s=0.0)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.wait_events("r1", 1)
    await proxy.registry.remove(engine.address)
    error = await peer.error("r1")
    assert (error.code, error.reason) == (grpc.StatusCode.ABORTED, "ENGINE_LOST")
    assert len(proxy.registry) == 0


async def test_removing_an_engine_moves_what_had_not_started(cluster, script, eventually):
    engine = await cluster.engine(script.hold)
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await eventually(lambda: bool(engine.submits))
    other = await cluster.engine()
    proxy.registry.add(BackendSpec(other.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    await proxy.registry.remove(engine.address)
    assert (await peer.outcome("r1")).response.HasField("finished")
    assert len(other.submits) == 1


async def test_a_retired_engine_leaves_when_its_requests_ended(cluster, script, eventually):
    engine, other = await cluster.engine(script.start_and_hold), await cluster.engine()
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.wait_events("r1", 1)
    proxy.registry.add(BackendSpec(other.address))
    proxy.registry.retire(engine.address)
    await eventually(lambda: [backend.name for backend in proxy.registry.ready()] == [other.address])
    await peer.submit("r2")
    await peer.outcome("r2")
    assert len(proxy.registry) == 2
    await peer.cancel("r1")
    await eventually(lambda: len(proxy.registry) == 1)


async def test_a_retired_engine_hands_on_what_outlasts_its_time(cluster, script, eventually):
    engine, other = await cluster.engine(script.start_and_hold), await cluster.engine()
    proxy = await cluster.proxy(engine)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.wait_events("r1", 1)
    proxy.registry.add(BackendSpec(other.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    proxy.registry.retire(engine.address, timeout_s=0.02)
    assert (await peer.outcome("r1")).response.HasField("finished")
    await eventually(lambda: len(proxy.registry) == 1)


async def test_an_unknown_engine_can_be_removed_and_retired(cluster):
    proxy = await cluster.proxy(await cluster.engine())
    proxy.registry.retire("nobody")
    proxy.registry.restore("nobody")
    await proxy.registry.remove("nobody")
    assert len(proxy.registry) == 1
