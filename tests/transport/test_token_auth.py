"""Tokens on gRPC ports: who gets in, with real servers and clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoRequest, GetModelInfoResponse
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub, add_EngineServiceServicer_to_server
from rhizome_testing.certificates import Authority
from rhizome_transport import probe
from rhizome_transport.channel import ENGINE_SERVICE, open_channel
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.grpc_server import EngineServicerBase, GrpcServer
from rhizome_transport.tls import ClientTls, ServerTls
from rhizome_transport.tokens import Tokens, check_admin_host

OLD, NEW, WRONG = "old-" + "a" * 32, "new-" + "b" * 32, "bad-" + "c" * 32


class Servicer(EngineServicerBase):
    async def GetModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return GetModelInfoResponse(model="served")

    async def Connect(self, requests: Any, context: Any) -> Any:  # noqa: N802
        yield await context.read()


@asynccontextmanager
async def listening(*tokens: str, tls: ServerTls | None = None) -> AsyncIterator[str]:
    server = GrpcServer("127.0.0.1:0", service_names=(ENGINE_SERVICE,), tokens=Tokens(tokens), tls=tls)
    server.add(add_EngineServiceServicer_to_server, Servicer())
    target = f"127.0.0.1:{await server.start()}"
    server.set_serving(ENGINE_SERVICE, True)
    try:
        yield target
    finally:
        await server.drain_and_stop(0)


async def model_at(target: str, *tokens: str) -> str:
    client = GrpcEngineClient(target, peer_name="test", tokens=Tokens(tokens) if tokens else None)
    try:
        return (await client.model_info()).model
    finally:
        await client.close()


async def test_a_caller_with_one_of_the_tokens_comes_in_and_others_do_not() -> None:
    async with listening(OLD, NEW) as target:
        for shown in (OLD, NEW):
            assert await model_at(target, shown) == "served"
        assert await model_at(target, NEW, WRONG) == "served"  # a client shows its first
        for stranger in ((), (WRONG,), (WRONG, NEW), (OLD[:-1],), (OLD + "a",)):
            with pytest.raises(EngineError, match="wants a token") as refused:
                await model_at(target, *stranger)
            assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "header", ["", OLD, f"bearer{OLD}", f"Basic {OLD}", f"Bearer  {OLD}", f"Bearer {OLD} ", "Bearer "]
)
async def test_headers_that_hold_no_token_in_its_form_are_refused(header: str) -> None:
    async with listening(OLD) as target, open_channel(target) as channel:
        call = EngineServiceStub(channel).GetModelInfo(
            GetModelInfoRequest(), metadata=(("authorization", header),)
        )
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_two_headers_are_none() -> None:
    metadata = (("authorization", f"Bearer {OLD}"), ("authorization", f"Bearer {WRONG}"))
    async with listening(OLD) as target, open_channel(target) as channel:
        call = EngineServiceStub(channel).GetModelInfo(GetModelInfoRequest(), metadata=metadata)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_every_kind_of_call_is_refused_at_once_and_nobody_learns_which_methods_exist() -> None:
    async with listening(OLD) as target, open_channel(target) as channel:
        unary: Any = channel.unary_unary(f"/{ENGINE_SERVICE}/NoSuchMethod")
        streaming: Any = channel.unary_stream(f"/{ENGINE_SERVICE}/Generate")
        both_ways: Any = channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")
        for call in (unary(b"", timeout=10), streaming(b"", timeout=10), both_ways(timeout=10)):
            assert await call.code() is grpc.StatusCode.UNAUTHENTICATED  # without a first message, too


async def test_streams_in_both_directions_carry_the_token() -> None:
    async with listening(OLD) as target, open_channel(target, tokens=Tokens((OLD,))) as channel:
        call: Any = channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")()
        await call.write(b"")
        assert await call.read() == b""
        assert await call.code() is grpc.StatusCode.OK


async def test_health_is_open_and_reflection_is_not(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{OLD}\n")
    question = reflection_pb2.ServerReflectionRequest(list_services="")

    async def asks(tokens: Tokens | None) -> list[Any]:
        async with open_channel(target, tokens=tokens) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            return [answer async for answer in stub.ServerReflectionInfo(iter([question]), timeout=10)]

    async with listening(OLD) as target:
        assert await asyncio.to_thread(probe.main, [target, "--service", ENGINE_SERVICE]) == probe.SERVING
        with_token = [target, "--token-file", str(file)]
        assert await asyncio.to_thread(probe.main, with_token) == probe.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asks(None)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        (answer,) = await asks(Tokens((OLD,)))
        assert ENGINE_SERVICE in [one.name for one in answer.list_services_response.service]


async def test_tokens_travel_inside_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("server")
    async with listening(OLD, tls=ServerTls.from_files(issued.cert, issued.key)) as target:
        tls = ClientTls.from_files(authority.ca)
        client = GrpcEngineClient(target, peer_name="test", tls=tls, tokens=Tokens((OLD,)))
        stranger = GrpcEngineClient(target, peer_name="test", tls=tls)
        assert (await client.model_info()).model == "served"
        with pytest.raises(EngineError, match="wants a token"):
            await stranger.model_info()
        await client.close()
        await stranger.close()


def test_a_file_holds_a_token_a_line_and_remarks(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# since May\n{NEW}\n\n  {OLD}  \n")
    tokens = Tokens.from_file(file)
    assert tokens == Tokens((NEW, OLD))
    assert tokens is not None and NEW not in repr(tokens)
    assert tokens.authorization == f"Bearer {NEW}"
    assert Tokens.from_file(None) is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "1 to 64 tokens"),
        ("# nothing\n", "1 to 64 tokens"),
        ("short\n", "could be guessed"),
        (f"{OLD}\ntwo words in a line\n", "token 2 .* without spaces"),
        ("ä" * 20, "ASCII"),
        (f"{OLD}\n" * 65, "1 to 64 tokens"),
        (OLD * 3000, "no token file"),
    ],
)
def test_files_that_cannot_be_meant_are_refused_and_not_quoted(
    tmp_path: Path, content: str, problem: str
) -> None:
    file = tmp_path / "tokens"
    file.write_text(content)
    with pytest.raises(ValueError, match=problem) as refused:
        Tokens.from_file(file)
    assert OLD not in str(refused.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No such file"):
        Tokens.from_file(tmp_path / "none")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "engine.internal"])
def test_operators_from_elsewhere_have_to_show_who_they_are(host: str) -> None:
    with pytest.raises(ValueError, match="admin listener"):
        check_admin_host(host, guarded=False)
    check_admin_host(host, guarded=True)
    for own in ("127.0.0.1", "localhost", "::1", "[::1]"):
        check_admin_host(own, guarded=False)
