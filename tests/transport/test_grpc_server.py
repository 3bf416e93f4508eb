"""The server kit: health, reflection, errors, refusals, drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rhizome.engine.v1 import engine_service_pb2 as messages
from rhizome.engine.v1.engine_service_pb2_grpc import (
    EngineServiceStub,
    add_EngineServiceServicer_to_server,
)
from rhizome.engine.v1.frames_pb2 import ClientFrame, Hello
from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome_transport import probe
from rhizome_transport.channel import ENGINE_SERVICE, open_channel
from rhizome_transport.errors import EngineError, from_rpc_error
from rhizome_transport.grpc_server import EngineServicerBase, GrpcServer

Status = health_pb2.HealthCheckResponse


class Servicer(EngineServicerBase):
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model == "crash":
            raise ZeroDivisionError("a bug")
        if request.model == "long":
            raise EngineError(grpc.StatusCode.INVALID_ARGUMENT, "x" * 100_000, param="model")
        return messages.GetModelInfoResponse(model="served")

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.started.set()
        try:
            yield GenerateResponse()
            await self.release.wait()
            yield GenerateResponse()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise EngineError(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "no pages left", reason="QUEUE_FULL", retry_after_s=2.0
        )


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[GrpcServer, Servicer, str]]:
    server = GrpcServer("127.0.0.1:0", service_names=(ENGINE_SERVICE,), **settings)
    servicer = Servicer()
    server.add(add_EngineServiceServicer_to_server, servicer)
    target = f"127.0.0.1:{await server.start()}"
    try:
        yield server, servicer, target
    finally:
        await server.drain_and_stop(0)


async def health_of(channel: grpc.aio.Channel, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)).status)


async def failure(call: Any) -> EngineError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_health_tells_liveness_from_readiness():
    async with running() as (server, _, target), open_channel(target) as channel:
        assert await health_of(channel, "") == Status.SERVING
        assert await health_of(channel, ENGINE_SERVICE) == Status.NOT_SERVING
        server.set_serving(ENGINE_SERVICE, True)
        assert await health_of(channel, ENGINE_SERVICE) == Status.SERVING
        error = await failure(health_of(channel, "no.such.Service"))
        assert error.code is grpc.StatusCode.NOT_FOUND
        assert ENGINE_SERVICE in error.message


async def test_every_watcher_sees_every_state_even_after_another_left():
    request = health_pb2.HealthCheckRequest(service=ENGINE_SERVICE)
    async with running() as (server, _, target), open_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        stays, leaves = stub.Watch(request), stub.Watch(request)
        assert (await stays.read()).status == Status.NOT_SERVING
        assert (await leaves.read()).status == Status.NOT_SERVING
        leaves.cancel()
        server.set_serving(ENGINE_SERVICE, True)
        assert (await stays.read()).status == Status.SERVING
        stays.cancel()


@pytest.mark.parametrize("version", ["v1alpha", "v1"])
async def test_reflection_lists_and_describes_services(version):
    request = reflection_pb2.ServerReflectionRequest
    async with running() as (_, _, target), open_channel(target) as channel:
        if version == "v1alpha":
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        else:
            call = channel.stream_stream(
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                request_serializer=request.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )()
        await call.write(request(list_services=""))
        names = {service.name for service in (await call.read()).list_services_response.service}
        assert {ENGINE_SERVICE, "grpc.health.v1.Health"} <= names
        assert "grpc.reflection.v1.ServerReflection" not in names
        for symbol in names:
            await call.write(request(file_containing_symbol=symbol))
            answer = await call.read()
            assert answer.file_descriptor_response.file_descriptor_proto, symbol
        call.cancel()


async def test_an_engine_error_arrives_with_its_details():
    async with running() as (_, servicer, target), open_channel(target) as channel:
        servicer.release.set()
        call = EngineServiceStub(channel).Generate(GenerateRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [event async for event in call]
        error = from_rpc_error(caught.value)
        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (error.message, error.reason, error.retry_after_s) == ("no pages left", "QUEUE_FULL", 2.0)


async def test_an_error_text_longer_than_trailers_allow_is_cut():
    async with running() as (_, _, target), open_channel(target) as channel:
        request = messages.GetModelInfoRequest(model="long")
        error = await failure(EngineServiceStub(channel).GetModelInfo(request))
        assert error.code is grpc.StatusCode.INVALID_ARGUMENT
        assert error.param == "model"
        assert len(error.message) == 1024


async def test_a_bug_becomes_internal_without_its_text(caplog):
    async with running() as (_, _, target), open_channel(target) as channel:
        request = messages.GetModelInfoRequest(model="crash")
        error = await failure(EngineServiceStub(channel).GetModelInfo(request))
        assert error.code is grpc.StatusCode.INTERNAL
        assert "a bug" not in error.message
        assert "ZeroDivisionError" in caplog.text


async def test_what_is_not_offered_is_unimplemented_without_noise(caplog):
    async with running() as (_, _, target), open_channel(target) as channel:
        stub = EngineServiceStub(channel)
        unary = await failure(stub.Embed(messages.EmbedRequest()))
        stream = await failure(stub.WatchLoad(messages.WatchLoadRequest()).read())
        both = await failure(stub.Connect().read())
        for error, method in ((unary, "Embed"), (stream, "WatchLoad"), (both, "Connect")):
            assert error.code is grpc.StatusCode.UNIMPLEMENTED
            assert f"{ENGINE_SERVICE}/{method} is not implemented" in error.message
        assert caplog.records == []


async def test_a_client_that_leaves_ends_the_servicer():
    async with running() as (server, servicer, target), open_channel(target) as channel:
        call = EngineServiceStub(channel).Generate(GenerateRequest())
        await call.read()
        assert server.in_flight == 1
        call.cancel()
        await asyncio.wait_for(servicer.cancelled.wait(), 5)
        async with asyncio.timeout(5):
            while server.in_flight:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_second_server_on_the_same_port_is_an_error():
    async with running() as (_, _, target):
        second = GrpcServer(target, service_names=())
        with pytest.raises(OSError, match="in use"):
            await second.start()


async def test_drain_lets_open_requests_finish_and_refuses_new_ones():
    async with running() as (server, servicer, target), open_channel(target) as channel:
        server.set_serving(ENGINE_SERVICE, True)
        stub = EngineServiceStub(channel)
        call = stub.Generate(GenerateRequest())
        await call.read()
        draining = asyncio.create_task(server.drain_and_stop(30))
        async with asyncio.timeout(5):
            while server.is_serving(ENGINE_SERVICE):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await health_of(channel, ENGINE_SERVICE) == Status.NOT_SERVING
        assert await health_of(channel, "") == Status.SERVING
        refused = await failure(stub.GetModelInfo(messages.GetModelInfoRequest()))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert not draining.done()
        servicer.release.set()
        assert isinstance(await call.read(), GenerateResponse)
        assert await draining is True


async def test_drain_cuts_off_what_does_not_finish_in_time():
    async with running() as (server, servicer, target), open_channel(target) as channel:
        call = EngineServiceStub(channel).Generate(GenerateRequest())
        await call.read()
        assert await server.drain_and_stop(0.1) is False
        await asyncio.wait_for(servicer.cancelled.wait(), 5)


async def test_drain_waits_for_requests_inside_endless_streams():
    inside = 1
    async with running(open_requests=lambda: inside) as (server, _, _):
        draining = asyncio.create_task(server.drain_and_stop(30))
        await asyncio.sleep(0.12)
        assert not draining.done()
        inside = 0
        assert await draining is True


async def test_single_methods_can_be_served_as_bytes():
    async def echo(frames: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for frame in frames:
            assert isinstance(frame, bytes)
            yield frame

    server = GrpcServer("127.0.0.1:0", service_names=(ENGINE_SERVICE,))
    server.add_handlers(ENGINE_SERVICE, {"Connect": grpc.stream_stream_rpc_method_handler(echo)})
    server.add(add_EngineServiceServicer_to_server, Servicer())
    target = f"127.0.0.1:{await server.start()}"
    async with open_channel(target) as channel:
        call = channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")()
        frame = ClientFrame(hello=Hello(peer_name="raw")).SerializeToString()
        await call.write(frame)
        assert await call.read() == frame
        call.cancel()
        info = await EngineServiceStub(channel).GetModelInfo(messages.GetModelInfoRequest())
        assert info.model == "served"
    await server.drain_and_stop(0)


async def test_probe_exit_codes(capsys):
    async with running() as (server, _, target):
        ask = asyncio.to_thread
        assert await ask(probe.main, [target]) == 0
        assert await ask(probe.main, [target, "--service", ENGINE_SERVICE]) == 1
        server.set_serving(ENGINE_SERVICE, True)
        assert await ask(probe.main, [target, "--service", ENGINE_SERVICE]) == 0
        assert await ask(probe.main, [target, "--service", "unknown"]) == 2
    assert await ask(probe.main, [target, "--timeout", "0.5"]) == 2
    assert "UNAVAILABLE" in capsys.readouterr().err
