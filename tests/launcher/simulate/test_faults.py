from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from tests.launcher.simulate.conftest import Start, completion, exchange

from rhizome_launcher.simulate.faults import Faults, parse_fault
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_launcher.simulate.physics import Physics


class Received(asyncio.Protocol):
    """All that arrived before the end, and the end: a `StreamReader` forgets what was there at a reset."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.end: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.end.set_result(exc)


def request(**fields: Any) -> bytes:
    body = orjson.dumps(completion(stream=True, **fields))
    return b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def ask(server: HttpServer, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request(**fields))
    return reader, writer


async def break_down(server: HttpServer, **faults: Any) -> None:
    status, body = await exchange(server, "POST", "/simulate", faults)
    assert status == 200, body


async def test_a_stream_is_reset_after_so_many_tokens(start: Start) -> None:
    server = await start()
    await break_down(server, reset=3, count=1)
    loop = asyncio.get_running_loop()
    transport, received = await loop.create_connection(Received, "127.0.0.1", server.port)
    transport.write(request())
    assert isinstance(await asyncio.wait_for(received.end, 5), ConnectionResetError)
    assert received.data.count(b"data: ") == 3
    reader, writer = await ask(server)
    await asyncio.wait_for(reader.readuntil(b"[DONE]"), 5)
    writer.close()


async def test_a_half_closed_stream_ends_without_its_end(start: Start) -> None:
    server = await start()
    await break_down(server, half_close=2)
    reader, writer = await ask(server)
    got = await asyncio.wait_for(reader.read(), 5)
    assert got.count(b"data: ") == 2
    assert not got.endswith(b"0\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(("after", "headers"), [(0, 0), (2, 1)])
async def test_a_stalled_server_says_nothing_more(start: Start, after: int, headers: int) -> None:
    server = await start()
    await break_down(server, stall=after)
    reader, writer = await ask(server)
    got = b""
    while got.count(b"data: ") < after:
        got += await asyncio.wait_for(reader.read(65536), 5)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    assert got.count(b"HTTP/1.1 200") == headers
    assert got.count(b"data: ") == after
    writer.close()


async def test_a_burst_of_errors_ends_after_its_count(start: Start) -> None:
    server = await start()
    await break_down(server, status=503, count=2)
    statuses = [(await exchange(server, "POST", "/v1/completions", completion()))[0] for _ in range(3)]
    assert statuses == [503, 503, 200]


async def test_slow_loris_sends_a_byte_at_a_time(start: Start) -> None:
    server = await start()
    await break_down(server, slow_loris=True)
    reader, writer = await ask(server)
    pieces = [await asyncio.wait_for(reader.read(65536), 5) for _ in range(4)]
    assert b"".join(pieces) == b"HTTP"
    writer.close()


async def test_nobody_is_let_in_for_a_while(start: Start) -> None:
    server = await start()
    await break_down(server, refuse_s=1.5)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(20):
        while True:
            try:
                assert (await exchange(server, "GET", "/health"))[0] == 200
                return
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)


async def test_health_and_metrics_fail_alone(start: Start) -> None:
    server = await start()
    await break_down(server, unhealthy=True, metrics_missing=True)
    assert (await exchange(server, "GET", "/health"))[0] == 503
    assert (await exchange(server, "GET", "/metrics"))[0] == 404
    assert (await exchange(server, "POST", "/v1/completions", completion()))[0] == 200
    await exchange(server, "DELETE", "/simulate")
    assert (await exchange(server, "GET", "/health"))[0] == 200
    assert (await exchange(server, "GET", "/metrics"))[0] == 200


async def test_latency_stretches_steps(start: Start) -> None:
    server = await start(physics=Physics(prefill_tokens_per_s=1e6, itl_base_ms=1, itl_per_request_ms=0))
    await break_down(server, latency=40)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await exchange(server, "POST", "/v1/completions", completion(max_tokens=3))
    assert loop.time() - begun >= 0.08


@pytest.mark.parametrize(
    "wrong",
    [
        {"secret": 1},
        {"reset": -1},
        {"reset": True},
        {"reset": "secret"},
        {"slow_loris": 1},
        {"latency": None},
        [1],
    ],
)
async def test_wrong_faults_change_nothing(start: Start, wrong: Any) -> None:
    server = await start()
    status, body = await exchange(server, "POST", "/simulate", wrong)
    assert status == 400
    assert b"secret" not in body
    assert server.faults == Faults()


def test_faults_on_the_command_line() -> None:
    given = dict(map(parse_fault, ("slow-loris", "reset=5", "stall", "latency=2.5", "unhealthy=false")))
    assert given == {"slow_loris": True, "reset": 5, "stall": 0, "latency": 2.5, "unhealthy": False}
    for wrong in ("nonsense", "reset=x", "slow_loris=5"):
        with pytest.raises(ValueError, match=r"must be|is one of"):
            parse_fault(wrong)
