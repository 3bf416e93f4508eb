"""The front's other methods, and who may call what."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1 import engine_service_pb2 as messages
from rhizome.engine.v1.engine_admin_service_pb2 import FlushCacheRequest, ProfileRequest
from rhizome.engine.v1.engine_admin_service_pb2_grpc import EngineAdminServiceStub
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import (
    GenerateRequest,
    GenerateResponse,
)
from rhizome_testing.buf import buf
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.text_requests import ids_of, run, text_of, text_request
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return EngineServiceStub(channel)


async def test_tokenize_and_detokenize_are_inverse(stub: Any) -> None:
    text = "Grüße, 世界!"
    request = messages.TokenizeRequest(text=text, add_special_tokens=False)
    ids = (await stub.Tokenize(request)).token_ids
    assert (await stub.Detokenize(messages.DetokenizeRequest(token_ids=ids))).text == text
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Detokenize(messages.DetokenizeRequest(token_ids=[10**6]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(messages.TokenizeRequest(text="x", model="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_describes_the_model(stub: Any, shared_engine: EngineProcess) -> None:
    info = await stub.GetModelInfo(messages.GetModelInfoRequest())
    assert info.model == shared_engine.model.name
    assert (info.architecture, info.device, info.dtype) == ("LlamaForCausalLM", "cpu", "float32")
    assert (info.vocab_size, info.max_context_tokens) == (320, 2048)
    assert info.page_size * info.kv_pages_total == 8192
    assert info.num_parameters > 0 and info.instance_id and info.version


async def test_watch_load_speaks_when_something_changed(stub: Any) -> None:
    watch = stub.WatchLoad(messages.WatchLoadRequest(min_interval_ms=10))
    first = (await watch.read()).load
    await run(stub, text_request("Watch"))
    second = (await watch.read()).load
    assert second.sequence > first.sequence
    assert second.instance_id == first.instance_id
    watch.cancel()


async def test_admin_has_a_listener_of_its_own(stub: Any, shared_engine: EngineProcess) -> None:
    await run(stub, text_request("A prompt that is long enough to fill a page of the cache"))
    async with grpc.aio.insecure_channel(shared_engine.admin_target) as channel:
        admin = EngineAdminServiceStub(channel)
        assert (await admin.FlushCache(FlushCacheRequest())).freed_pages > 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin.Profile(ProfileRequest(steps=1))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    async with grpc.aio.insecure_channel(shared_engine.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await EngineAdminServiceStub(channel).FlushCache(FlushCacheRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_connect_carries_many_requests_on_one_stream(shared_engine: EngineProcess, stub: Any) -> None:
    client = GrpcEngineClient(shared_engine.target, peer_name="test")
    try:
        await client.wait_ready(10)
        requests = [text_request("") for _ in range(8)]
        for number, request in enumerate(requests):
            request.token_ids.ids.extend(range(10, 20 + number))

        async def collect(request: GenerateRequest) -> list[GenerateResponse]:
            return [event async for event in client.generate(request, timeout_s=30)]

        together = await asyncio.gather(*map(collect, requests))
        for request, events in zip(requests, together, strict=True):
            assert events[-1].HasField("finished")
            request.request_id = ""
            assert ids_of(events) == ids_of(await run(stub, request))
    finally:
        await client.close()


async def test_connect_takes_no_administration(shared_engine: EngineProcess, stub: Any) -> None:
    client = GrpcEngineClient(shared_engine.target, peer_name="rhizome-engine-front")
    try:
        with pytest.raises(EngineError) as caught:
            await client.frames.call("Drain", b"")
        assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED
    finally:
        await client.close()
    assert text_of(await run(stub, text_request("The engine still answers")))


async def test_a_closed_connect_stream_cancels_what_it_left_open(
    until_idle: Any, shared_engine: EngineProcess, stub: Any
) -> None:
    client = GrpcEngineClient(shared_engine.target, peer_name="short-lived")
    request = text_request("", max_tokens=1900)
    request.token_ids.ids.extend([1, 2, 3])
    events = client.generate(request)
    await anext(events)
    await client.close()
    await events.aclose()
    await until_idle(stub)


@pytest.mark.parametrize("reflection", ["grpc-v1", "grpc-v1alpha"])
def test_buf_curl_lists_and_generates(shared_engine: EngineProcess, reflection: str) -> None:
    def buf_curl(*arguments: str) -> str:
        command = [buf(), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
        command += ["--reflect-protocol", reflection, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    url = f"http://{shared_engine.target}"
    assert "rhizome.engine.v1.EngineService/Generate" in buf_curl("--list-methods", url)
    request = '{"text": "Hello", "stop": {"maxTokens": 3}}'
    assert '"finished"' in buf_curl("-d", request, f"{url}/rhizome.engine.v1.EngineService/Generate")
