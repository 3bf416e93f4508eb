"""However the network cuts messages up, they arrive whole; whatever bytes come, the proxy stays up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.relay.conftest import GET, Backend, Bed, Call, post, say_ok

EXAMPLES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

bodies = st.binary(max_size=300)
pieces = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def cut(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    """`data` in pieces of these sizes, over and over."""
    start = index = 0
    while start < len(data):
        end = start + sizes[index % len(sizes)]
        yield data[start:end]
        start, index = end, index + 1


def chunked(body: bytes, sizes: list[int]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(body, sizes)) + b"0\r\n\r\n"


class Background:
    """A proxy and its backend on a loop of their own, so that each example need not start them."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.bed: Bed = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    async def _start(self) -> Bed:
        backend = Backend(say_ok)
        await backend.start()
        bed = Bed([backend], {"replay_bytes": 200}, 1_000_000)
        await bed.server.start("127.0.0.1", 0)
        return bed

    def stop(self) -> None:
        self.run(self.bed.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    running = Background()
    yield running
    running.stop()


@EXAMPLES
@given(body=bodies, chunks=pieces, arrival=pieces, length_known=st.booleans())
def test_a_request_arrives_whole(
    background: Background, body: bytes, chunks: list[int], arrival: list[int], length_known: bool
) -> None:
    raw = post(body)
    if not length_known:
        raw = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, chunks)

    async def ask() -> None:
        background.bed.backend.script = say_ok
        background.bed.backend.received.clear()
        peer = await background.bed.peer()
        for piece in cut(raw, arrival):
            await peer.send(piece)
            await asyncio.sleep(0)
        assert (await peer.read("POST")).status == 200
        peer.writer.close()

    background.run(ask())
    assert [request.body for request in background.bed.backend.received] == [body]


@EXAMPLES
@given(body=bodies, chunks=pieces, arrival=pieces, framing=st.sampled_from(["length", "chunked", "close"]))
def test_a_response_arrives_whole(
    background: Background, body: bytes, chunks: list[int], arrival: list[int], framing: str
) -> None:
    head = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nX-A: 2\r\n"
    raw = {
        "length": head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        "chunked": head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, chunks),
        "close": head + b"\r\n" + body,
    }[framing]

    async def script(call: Call) -> None:
        for piece in cut(raw, arrival):
            await call.send(piece)
            await asyncio.sleep(0)
        if framing == "close":
            call.writer.close()

    async def ask() -> None:
        background.bed.backend.script = script
        peer = await background.bed.peer()
        for _ in range(2):
            response = await peer.ask(GET)
            assert (response.status, response.body) == (200, body)
            assert response.values(b"x-a") == [b"1", b"2"]
        peer.writer.close()

    background.run(ask())


@EXAMPLES
@given(raw=st.binary(max_size=200), place=st.integers(0, 120), arrival=pieces)
def test_no_bytes_break_the_proxy(background: Background, raw: bytes, place: int, arrival: list[int]) -> None:
    whole = post(b"x" * 20, b"Transfer-Encoding: x", b"X-A: 1")
    damaged = whole[:place] + raw + whole[place:]

    async def ask(*data: bytes) -> None:
        peer = await background.bed.peer()
        for piece in data:
            await peer.send(piece)
        peer.writer.write_eof()
        await asyncio.wait_for(peer.reader.read(), 5)
        peer.writer.close()

    background.bed.backend.script = say_ok
    for step in (ask(*cut(damaged, arrival)), check(background.bed.ask)):
        background.run(step)


async def check(ask: Callable[..., Awaitable[Any]]) -> None:
    assert (await ask(GET)).status == 200
