"""Readers that are slow, and clients that leave before there is anything to read."""

import asyncio
import errno
import json
import re
import socket

import psutil
from tests.gateway.conftest import RunningGateway, eventually

from rhizome_testing.talking_engine import Hang, Say, TalkingEngine

PIECE = "0123456789abcdef" * 64
PIECES = 4000


def _raw_request(gateway: RunningGateway, **fields: object) -> bytes:
    body = json.dumps(
        {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}], **fields}
    ).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )


async def _connect(
    gateway: RunningGateway, **options: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    port = int(gateway.url.rpartition(":")[2])
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=sock, **options)


async def test_a_slow_reader_slows_only_itself_and_takes_no_memory(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say(PIECE, at_once=True)] * PIECES
    reader, writer = await _connect(gateway, limit=2**14)
    writer.write(_raw_request(gateway, stream=True))
    await reader.readuntil(b"\r\n\r\n")
    before = psutil.Process().memory_info().rss
    engine.script = lambda prompt: [Say("quick")]
    answers = [(await gateway.chat()).json() for _ in range(5)]
    assert {answer["choices"][0]["message"]["content"] for answer in answers} == {"quick"}
    raw = b""
    while b"[DONE]" not in raw[-64:]:
        raw += await reader.read(2**16)
    text = "".join(
        json.loads(line[6:])["choices"][0]["delta"].get("content") or ""
        for line in re.sub(rb"\r\n[0-9a-f]+\r\n", b"", raw).splitlines()
        if line.startswith(b'data: {"')
    )
    assert text == PIECE * PIECES
    # All of it is 4 MB; engine, gateway and this reader are one process here.
    assert psutil.Process().memory_info().rss - before < 200e6
    writer.close()


async def test_who_reads_nothing_is_shown_out(engine: TalkingEngine, start_gateway) -> None:
    """At once and for good: nothing of the answer stays behind, in no buffer of the kernel either."""
    engine.script = lambda prompt: [*[Say(PIECE * 16, at_once=True)] * 1000, Hang()]
    async with start_gateway(engine.target, keep_alive_s=0.1, stalled_s=0.3) as gateway:
        await gateway.becomes_ready()
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, ("127.0.0.1", int(gateway.url.rpartition(":")[2])))
            await loop.sock_sendall(raw, _raw_request(gateway, stream=True))
            await eventually(lambda: raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET)
        await eventually(lambda: len(engine.cancelled) == 1)


async def test_who_leaves_while_queued_is_cancelled(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Hang()]
    for stream in (True, False):
        _, writer = await _connect(gateway)
        writer.write(_raw_request(gateway, stream=stream))
        await eventually(lambda: len(engine.submits) > len(engine.cancelled))
        writer.close()
        await eventually(lambda: len(engine.submits) == len(engine.cancelled), within_s=1)


async def test_who_leaves_in_the_middle_of_its_body_leaves_nothing(gateway, engine: TalkingEngine) -> None:
    _, writer = await _connect(gateway)
    writer.write(_raw_request(gateway)[:-5])
    await eventually(lambda: len(gateway.server.server_state.tasks) == 1)
    writer.close()
    await eventually(lambda: not gateway.server.server_state.tasks, within_s=1)
    assert not engine.submits


async def test_a_long_wait_in_the_queue_is_bridged(engine: TalkingEngine, start_gateway) -> None:
    """The engine says nothing at all for a while, not even that it has begun."""
    engine.script = lambda prompt: [Say("at last")]
    engine.begins = asyncio.Event()
    async with start_gateway(engine.target, keep_alive_s=0.1) as gateway:
        await gateway.becomes_ready()
        async with gateway.http.stream(
            "POST",
            "/v1/chat/completions",
            json={"model": "talking-model", "stream": True, "messages": [{"role": "user", "content": "Hi"}]},
        ) as answer:
            assert answer.status_code == 200
            lines = []
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": keep-alive") == 3:
                    engine.begins.set()
    assert lines.count(": keep-alive") >= 3
    assert lines[0] == ": keep-alive" and lines[-2] == "data: [DONE]"
