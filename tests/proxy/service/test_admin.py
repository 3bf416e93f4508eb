"""ProxyService on the operators' listener: engines come, drain and go under load."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import pytest
from tests.proxy.scripted_engine import TOKENS

from rhizome.proxy.v1 import proxy_service_pb2 as proxy_pb2
from rhizome.proxy.v1.proxy_service_pb2_grpc import ProxyServiceStub
from rhizome_backends.spec import BackendSpec
from rhizome_testing.ports import free_ports


@pytest.fixture
async def admin(cluster):
    """Starts a proxy with the listener; gives it and a stub."""
    channels = []

    async def start(*engines, **settings):
        (port,) = free_ports(1)
        proxy = await cluster.proxy(*engines, admin_port=port, **settings)
        channels.append(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        return proxy, ProxyServiceStub(channels[-1])

    yield start
    for channel in channels:
        await channel.close()


def held(release: asyncio.Event, script):
    """Starts, says one token, and the rest once released; goes on with what was resumed."""

    async def run(peer, submit):
        request_id, at = submit.request.request_id, submit.request.resumed_tokens
        await peer.send(script.started(request_id))
        if not at:
            await peer.send(script.delta(request_id, TOKENS[0]))
            await release.wait()
            at = 1
        for token in TOKENS[at:]:
            await peer.send(script.delta(request_id, token))
        await peer.send(script.finished(request_id))

    return run


async def test_an_added_engine_serves_and_a_removed_one_hands_its_requests_on(
    cluster, script, admin, eventually
):
    release = asyncio.Event()
    first = await cluster.engine(held(release, script))
    second = await cluster.engine(held(release, script))
    proxy, stub = await admin(first)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.wait_events("r1", 2)
    added = await stub.AddBackend(proxy_pb2.AddBackendRequest(address=second.address, name="new"))
    assert (added.backend.name, added.backend.state) == ("new", proxy_pb2.BACKEND_STATE_UNKNOWN)
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    await stub.RemoveBackend(proxy_pb2.RemoveBackendRequest(name=first.address))
    await peer.outcome("r1")
    assert peer.tokens("r1") == TOKENS
    listed = await stub.ListBackends(proxy_pb2.ListBackendsRequest())
    assert [backend.name for backend in listed.backends] == ["new"]


async def test_a_drain_waits_for_open_requests(cluster, script, admin, eventually):
    release = asyncio.Event()
    first = await cluster.engine(held(release, script))
    proxy, stub = await admin(first)
    peer = await cluster.peer(proxy)
    await peer.submit("r1")
    await peer.wait_events("r1", 2)
    second = await cluster.engine()
    proxy.registry.add(BackendSpec(second.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    draining = asyncio.ensure_future(stub.DrainBackend(proxy_pb2.DrainBackendRequest(name=first.address)))
    await eventually(lambda: len(proxy.registry.ready()) == 1)
    await peer.submit("r2")
    await peer.outcome("r2")
    assert len(second.submits) == 1 and not draining.done()
    release.set()
    assert (await draining).in_flight_requests == 0
    await peer.outcome("r1")  # on another connection
    assert peer.tokens("r1") == TOKENS and len(first.submits) == 1
    back = await stub.AddBackend(proxy_pb2.AddBackendRequest(address=first.address))
    assert back.backend.state == proxy_pb2.BACKEND_STATE_READY


async def test_a_drain_moves_what_is_left_after_its_time(cluster, script, admin, eventually):
    first = await cluster.engine(held(asyncio.Event(), script))
    proxy, stub = await admin(first, max_resumes=1)
    peer = await cluster.peer(proxy)
    for number in range(3):
        await peer.submit(f"r{number}")
        await peer.wait_events(f"r{number}", 2)
    second = await cluster.engine(held(asyncio.Event(), script))
    proxy.registry.add(BackendSpec(second.address))
    await eventually(lambda: len(proxy.registry.ready()) == 2)
    request = proxy_pb2.DrainBackendRequest(name=first.address)
    request.timeout.FromMilliseconds(50)
    assert (await stub.DrainBackend(request)).in_flight_requests == 3
    for number in range(3):
        await peer.outcome(f"r{number}")
        assert peer.tokens(f"r{number}") == TOKENS
    assert len(second.submits) == 3
    await eventually(lambda: proxy.registry.get(first.address).in_flight == 0)


async def test_watching_shows_each_change(cluster, admin):
    engine = await cluster.engine()
    proxy, stub = await admin(engine)
    call = stub.WatchBackends(proxy_pb2.WatchBackendsRequest())
    first = await call.read()
    assert [backend.state for backend in first.backends] == [proxy_pb2.BACKEND_STATE_READY]
    proxy.registry.get(engine.address).drain()
    second = await call.read()
    assert [backend.state for backend in second.backends] == [proxy_pb2.BACKEND_STATE_DRAINING]
    call.cancel()


@pytest.mark.parametrize(
    ("method", "fields", "code"),
    [
        ("AddBackend", {"address": "ftp://x:1"}, "INVALID_ARGUMENT"),
        ("AddBackend", {"address": "a:1,b:2"}, "INVALID_ARGUMENT"),
        ("AddBackend", {"address": "dns:///a:1"}, "INVALID_ARGUMENT"),
        ("AddBackend", {"address": "a:1", "kind": "vllm"}, "INVALID_ARGUMENT"),
        ("AddBackend", {"address": "there"}, "ALREADY_EXISTS"),
        ("RemoveBackend", {"name": "x"}, "NOT_FOUND"),
        ("DrainBackend", {"name": "x"}, "NOT_FOUND"),
    ],
)
async def test_wrong_requests_are_told_apart(cluster, admin, method, fields, code):
    engine = await cluster.engine()
    _, stub = await admin(engine)
    if fields.get("address") == "there":
        fields = {"address": engine.address}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(getattr(proxy_pb2, f"{method}Request")(**fields))
    assert caught.value.code().name == code
