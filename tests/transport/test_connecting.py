"""How clients connect: each on its own, and again after whatever went wrong."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import psutil
import pytest
import zmq

from rhizome_testing.engine_ways import ask, tokens_of
from rhizome_testing.scripted_engine import ScriptedCore
from rhizome_testing.scripted_front import ScriptedFront
from rhizome_transport import grpc_connection
from rhizome_transport.errors import EngineError
from rhizome_transport.frames import FrameMultiplexer
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.grpc_connection import GrpcDialer
from rhizome_transport.open_core import open_core


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


async def test_an_unexpected_failure_to_connect_is_tried_again(endpoint):
    core = ScriptedCore(endpoint)
    context = zmq.Context()
    failures = [ValueError("surprise")]

    async def connect():
        if failures:
            raise failures.pop()
        return open_core(context, endpoint)

    frames = FrameMultiplexer(connect, target=endpoint, peer_name="test")
    events = [event async for event in frames.generate(ask("count-2"))]
    assert events[-1].HasField("finished")
    await frames.close()
    context.destroy(linger=0)
    core.stop()


async def test_a_name_server_that_says_nothing_is_not_waited_for(monkeypatch):
    async def silence(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(grpc_connection, "_RESOLVE_S", 0.05)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silence)
    with pytest.raises(
        EngineError, match=r"engine:1 cannot be reached: the name was not resolved within 0\.05 s"
    ):
        await GrpcDialer("engine:1")()
