"""The proxy as a gRPC server."""

from __future__ import annotations

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import ProxySettings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ENGINE, PROXY = "rhizome.engine.v1.EngineService", "rhizome.proxy.v1.ProxyService"


async def health(channel, service: str):
    request = health_pb2.HealthCheckRequest(service=service)
    return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def test_serves_engines_as_long_as_one_is_ready(cluster, eventually):
    first, second = await cluster.engine(), await cluster.engine()
    proxy = await cluster.proxy(first, second)
    channel = cluster.channel(proxy)
    assert [await health(channel, name) for name in ("", ENGINE, PROXY)] == [SERVING] * 3
    await first.kill()
    await eventually(lambda: len(proxy.registry.ready()) == 1)
    assert await health(channel, ENGINE) == SERVING
    second.set_serving(False)
    await eventually(lambda: not proxy.registry.ready())
    assert [await health(channel, name) for name in ("", ENGINE, PROXY)] == [SERVING, NOT_SERVING, SERVING]
    await first.start()
    await eventually(lambda: len(proxy.registry.ready()) == 1)
    assert await health(channel, ENGINE) == SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_lists_both_services(cluster, version):
    channel = cluster.channel(await cluster.proxy(await cluster.engine()))
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    assert {ENGINE, PROXY} <= listed
    for service in (ENGINE, PROXY):
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=service))
        assert (await call.read()).file_descriptor_response.file_descriptor_proto
    call.cancel()


async def test_engines_are_checked_before_a_proxy_serves(cluster):
    engine = await cluster.engine()
    proxy = ProxyServer(ProxySettings(backends=engine.address, port=0, poll_timeout_s=30.0))
    try:
        await proxy.start()
        assert [backend.name for backend in proxy.registry.ready()] == [engine.address]
    finally:
        await proxy.stop(0.0)


async def test_a_taken_port_is_refused(cluster):
    proxy = await cluster.proxy(await cluster.engine())
    with pytest.raises(OSError, match="cannot listen on"):
        await cluster.proxy(await cluster.engine(), port=proxy.port)


async def test_a_proxy_may_stand_before_a_proxy(cluster, eventually):
    engine = await cluster.engine()
    inner = await cluster.proxy(engine)
    outer = await cluster.proxy(backends=f"127.0.0.1:{inner.port}")
    await eventually(outer.registry.ready)
    peer = await cluster.peer(outer)
    await peer.submit("r1")
    await peer.outcome("r1")
    assert peer.tokens("r1") == (5, 6, 7)


async def test_requests_spread_over_idle_engines(cluster):
    engines = [await cluster.engine() for _ in range(3)]
    peer = await cluster.peer(await cluster.proxy(*engines))
    for number in range(60):
        await peer.submit(f"r{number}")
        await peer.outcome(f"r{number}")
    assert min(len(engine.submits) for engine in engines) >= 5


async def test_a_burst_spreads_evenly(cluster, script, eventually):
    engines = [await cluster.engine(script.hold) for _ in range(4)]
    peer = await cluster.peer(await cluster.proxy(*engines, poll_interval_s=30))
    for number in range(40):
        await peer.submit(f"r{number}")
    await eventually(lambda: sum(len(engine.submits) for engine in engines) == 40)
    assert [len(engine.submits) for engine in engines] == [10] * 4
