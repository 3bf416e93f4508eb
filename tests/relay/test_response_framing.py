"""Responses of backends: where they end, and that a client sees when they do not."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import pytest
from tests.relay.conftest import GET, OK, SSE_HEAD, Call, Script

from rhizome_relay.picker import Ending

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

MALFORMED = {
    "both lengths": HEAD + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "another coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\nabc",
    "chunked before another": HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\nabc",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n",
    "a bare line feed": HEAD + b"X: a\nContent-Length: 0\r\n\r\n",
    "a folded line": HEAD + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "headers without end": HEAD + b"X: " + b"x" * 600_000,
}


def saying(data: bytes, *, close: bool = False) -> Script:
    async def script(call: Call) -> None:
        await call.send(data)
        if close:
            call.writer.close()

    return script


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_response_is_a_bad_gateway(bed: Any, raw: bytes) -> None:
    running = await bed(saying(raw))
    peer = await running.peer()
    assert (await peer.ask(GET)).status == 502
    running.backend.script = saying(OK)
    assert (await peer.ask(GET)).status == 200  # the client's connection is none the worse for it
    assert running.targets[0].endings == [Ending.MALFORMED, Ending.COMPLETE]
    assert running.backend.accepted == 2


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_after_a_malformed_response_another_backend_is_tried(bed: Any, raw: bytes) -> None:
    running = await bed(saying(raw), saying(OK))
    response = await running.ask(GET)
    assert (response.status, response.values(b"x-rhizome-attempts")) == (200, [b"2"])


@pytest.mark.parametrize(
    ("raw", "method", "headers"),
    [
        (HEAD + b"Content-Length: 12\r\n\r\n", "HEAD", {b"content-length": b"12"}),
        (HEAD + CHUNKED + b"\r\n", "HEAD", {}),
        (b"HTTP/1.1 204 No\r\n\r\n", "GET", {}),
        (b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n", "GET", {}),
        (b"HTTP/1.1 304 Not\r\nContent-Length: 12\r\nETag: x\r\n\r\n", "GET", {b"content-length": b"12"}),
        (b"HTTP/1.1 299 Odd\r\nContent-Length: 0\r\n\r\n", "GET", {b"content-length": b"0"}),
    ],
)
async def test_responses_without_a_body(
    bed: Any, raw: bytes, method: str, headers: dict[bytes, bytes]
) -> None:
    running = await bed(saying(raw))
    peer = await running.peer()
    for _ in range(3):
        response = await peer.ask(b"%b /v1/x HTTP/1.1\r\nHost: a\r\n\r\n" % method.encode(), method)
        assert response.status == int(raw.split()[1])
        framing = {k: v for k, v in response.headers if k in (b"content-length", b"transfer-encoding")}
        assert framing == headers
        assert response.body == b""
    assert running.backend.accepted == 1


async def test_a_body_after_head_ends_the_connection_to_the_backend(bed: Any) -> None:
    running = await bed(saying(HEAD + b"Content-Length: 5\r\n\r\nhello"))
    peer = await running.peer()
    for _ in range(2):
        assert (await peer.ask(b"HEAD /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD")).body == b""
    assert running.backend.accepted == 2


async def test_an_answer_to_nobody_reaches_nobody(bed: Any) -> None:
    running = await bed(saying(OK + HEAD + b"Content-Length: 8\r\n\r\npoisoned"))
    peer = await running.peer()
    for _ in range(3):
        assert (await peer.ask(GET)).body == b"ok"
    assert running.backend.accepted == 3


async def test_headers_of_an_answer_to_nobody_are_no_trailers(bed: Any) -> None:
    running = await bed(saying(HEAD + CHUNKED + b"\r\n2\r\nok\r\n0\r\n\r\n" + HEAD + b"X-Evil: 1\r\n\r\n"))
    response = await running.ask(GET[:-2] + b"TE: trailers\r\n\r\n")
    assert (response.body, response.trailers) == (b"ok", [])


async def test_a_body_until_the_end_of_the_connection_gets_an_end(bed: Any) -> None:
    running = await bed(saying(HEAD + b"\r\nhello", close=True))
    peer = await running.peer()
    for _ in range(2):
        response = await peer.ask(GET)
        assert (response.body, response.values(b"transfer-encoding")) == (b"hello", [b"chunked"])
    assert running.targets[0].endings == [Ending.COMPLETE] * 2


async def test_a_client_of_http_1_0_gets_no_chunks(bed: Any) -> None:
    running = await bed(saying(HEAD + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n"))
    peer = await running.peer()
    await peer.send(b"GET /v1/x HTTP/1.0\r\n\r\n")
    head, _, body = (await peer.reader.read()).partition(b"\r\n\r\n")
    assert body == b"hello"
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_chunks_that_arrive_alone_are_framed_for_the_client(bed: Any, version: str) -> None:
    async def speak(call: Call) -> None:
        await call.send(HEAD + CHUNKED + b"\r\n")
        for number in range(5):
            await asyncio.sleep(0.02)
            await call.event(b"%d" % number * 20)
        await call.send(b"0\r\n\r\n")

    running = await bed(speak)
    peer = await running.peer()
    await peer.send(b"GET /v1/x HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n" % version.encode())
    body = (await peer.reader.read()).partition(b"\r\n\r\n")[2]
    pieces = [b"%d" % number * 20 for number in range(5)]
    chunks = b"".join([b"14\r\n%b\r\n" % piece for piece in pieces]) + b"0\r\n\r\n"
    assert body == (b"".join(pieces) if version == "1.0" else chunks)


async def test_early_hints_go_through_and_other_interim_responses_do_not(bed: Any) -> None:
    raw = b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Wait\r\n\r\n" + OK
    running = await bed(saying(raw))
    peer = await running.peer()
    assert (await peer.ask(GET)).body == b"ok"
    assert [hint.status_code for hint in peer.interim] == [103]


TRUNCATED = {
    "a length": HEAD + b"Content-Length: 10\r\n\r\nhello",
    "chunks": HEAD + CHUNKED + b"\r\n5\r\nhello\r\n",
    "half a chunk": HEAD + CHUNKED + b"\r\n9\r\nhello",
}


@pytest.mark.parametrize("raw", TRUNCATED.values(), ids=TRUNCATED.keys())
async def test_a_truncated_response_is_truncated_for_the_client(bed: Any, raw: bytes) -> None:
    running = await bed(saying(raw, close=True))
    peer = await running.peer()
    with pytest.raises(h11.RemoteProtocolError):
        await peer.ask(GET)
    assert running.targets[0].endings == [Ending.TRUNCATED]


async def test_bad_chunks_in_the_middle_truncate(bed: Any) -> None:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD)
        await call.event(b"data: 1\n\n")
        await read.wait()
        await call.send(b"zzz\r\n")

    read = asyncio.Event()
    running = await bed(script)
    peer = await running.peer()
    await peer.send(GET)
    await peer.reader.readuntil(b"\n\n\r\n")  # the end of the chunk that ends the event
    read.set()
    rest = await asyncio.wait_for(peer.reader.read(), 5)
    assert b'data: {"error"' in rest
    assert not rest.endswith(b"0\r\n\r\n")


async def test_a_truncated_response_is_seen_by_a_client_of_http_1_0(bed: Any) -> None:
    running = await bed(saying(TRUNCATED["chunks"], close=True))
    peer = await running.peer()
    await peer.send(b"GET /v1/x HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await peer.reader.read()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_truncated_stream_ends_with_an_error_event(bed: Any, reset: bool) -> None:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD)
        await call.event(b"data: 1\n")
        await call.event(b"\n")
        await read.wait()
        call.reset() if reset else call.writer.close()

    read = asyncio.Event()
    running = await bed(script)
    peer = await running.peer()
    await peer.send(GET)
    await peer.reader.readuntil(b"\n\n\r\n")  # the end of the chunk that ends the event
    read.set()
    rest = await asyncio.wait_for(peer.reader.read(), 5)
    assert rest.count(b'data: {"error":{"message":') == 1
    assert b"[DONE]" not in rest
    assert not rest.endswith(b"0\r\n\r\n")


async def test_half_an_event_is_not_completed_by_an_error(bed: Any) -> None:
    running = await bed(saying(SSE_HEAD + b'8\r\ndata: {"\r\n', close=True))
    peer = await running.peer()
    await peer.send(GET)
    assert b"error" not in await asyncio.wait_for(peer.reader.read(), 5)


async def test_streams_tell_proxies_not_to_hold_them_back(bed: Any) -> None:
    running = await bed(saying(SSE_HEAD + b"0\r\n\r\n"))
    response = await running.ask(GET)
    assert response.values(b"x-accel-buffering") == [b"no"]
    assert response.values(b"cache-control") == [b"no-cache"]
