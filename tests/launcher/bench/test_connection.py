"""What the client makes of servers that answer in all ways that HTTP allows, and in some that it does not."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.launcher.bench.conftest import eventually

from rhizome_launcher.bench.client import OpenAIClient
from rhizome_launcher.bench.connection import PIECES_AT_ONCE
from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.records import RequestRecord
from rhizome_testing.certificates import Authority

TEXT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
END = (
    b'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\ndata: [DONE]\n\n'
)
BODY = TEXT + TEXT + END
LENGTH = b"content-length: %d\r\n" % len(BODY)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class RawServer:
    """Reads requests and lets a function write what it likes.

    Attributes:
        requests: their heads, as they came.
        connections, ended: how many were made, and of them are over.
    """

    def __init__(self, answer: Callable[[asyncio.StreamWriter, int], Awaitable[None]]) -> None:
        self._answer = answer
        self.requests: list[str] = []
        self.connections = 0
        self.ended = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = [line[16:] for line in head.split("\r\n") if line.startswith("content-length: ")]
                await reader.readexactly(int(length[0]) if length else 0)
                self.requests.append(head)
                await self._answer(writer, len(self.requests) - 1)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.ended += 1
            writer.close()


@asynccontextmanager
async def serving(
    answer: Callable[[asyncio.StreamWriter, int], Awaitable[None]], tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[RawServer, str]]:
    raw = RawServer(answer)
    listener = await asyncio.start_server(raw.serve, "127.0.0.1", 0, ssl=tls)
    async with listener:
        yield raw, f"{'https' if tls else 'http'}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"


def client_of(url: str, api_key: str = "") -> OpenAIClient:
    return OpenAIClient(url, endpoint="chat", api_key=api_key, timeout_s=20)


async def ask(client: OpenAIClient) -> RequestRecord:
    return await client.send(client.body("one two", "m", 2, {}))


async def ask_once(answer: Callable[[asyncio.StreamWriter, int], Awaitable[None]]) -> RequestRecord:
    async with serving(answer) as (_, url), client_of(url) as client:
        return await ask(client)


def writes(*pieces: bytes, close: bool = False) -> Callable[[asyncio.StreamWriter, int], Awaitable[None]]:
    """Answer every request with these bytes, each piece on its own."""

    async def answer(writer: asyncio.StreamWriter, index: int) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if close:
            writer.close()

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        writes(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(TEXT, TEXT, END)),
        writes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(BODY[:70], BODY[70:])),
        writes(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY),
        writes(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + BODY, close=True),
        writes(b"HTTP/1.0 200 OK\r\n\r\n" + BODY, close=True),
        writes(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY),
        writes(
            b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY,
        ),
        writes(*(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY)),
    ],
    ids=["chunked", "chunks across events", "length", "close", "http 1.0", "100", "103", "byte by byte"],
)
async def test_every_framing_of_a_body_is_read_to_its_end(
    answer: Callable[[asyncio.StreamWriter, int], Awaitable[None]],
) -> None:
    record = await ask_once(answer)
    assert (record.error, record.detail) == ("", "")
    assert (record.prompt_tokens, record.output_tokens, len(record.text_s)) == (5, 2, 2)
    assert record.started_s <= record.text_s[0] <= record.text_s[1] <= record.ended_s


@pytest.mark.parametrize(
    ("answer", "error", "detail"),
    [
        (writes(b"", close=True), "connection_lost", "before it answered"),
        (
            writes(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + TEXT, close=True),
            "connection_lost",
            "in the middle",
        ),
        (writes(b"SSH-2.0-OpenSSH_9.6\r\n"), "bad_stream", "no HTTP response"),
        (
            writes(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
            "bad_stream",
            "",
        ),
        (writes(b"HTTP/1.1 204 No Content\r\n\r\n"), "http_204", ""),
        (writes(b"HTTP/1.1 307 Moved\r\nlocation: /x\r\ncontent-length: 4\r\n\r\ngone"), "http_307", "gone"),
    ],
)
async def test_what_is_no_answer_is_told_by_its_kind(
    answer: Callable[[asyncio.StreamWriter, int], Awaitable[None]], error: str, detail: str
) -> None:
    record = await ask_once(answer)
    assert record.error == error
    assert detail in record.detail


async def test_pieces_have_the_time_at_which_they_came_also_where_there_are_many() -> None:
    count = 3 * PIECES_AT_ONCE

    async def answer(writer: asyncio.StreamWriter, index: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for piece in range(count):
            if piece == count // 2:
                await asyncio.sleep(0.2)
            writer.write(b"%x\r\n%b\r\n" % (len(TEXT), TEXT))
            await writer.drain()
        writer.write(chunked(END))

    record = await ask_once(answer)
    assert record.ok and len(record.text_s) == count
    assert record.gaps_s[count // 2 - 1] >= 0.15
    assert record.text_s == sorted(record.text_s)


async def test_what_came_before_a_lost_connection_is_kept() -> None:
    begin = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    record = await ask_once(writes(begin + chunked(TEXT, TEXT)[:-5], close=True))
    assert record.error == "connection_lost"
    assert len(record.text_s) == 2


async def test_a_connection_is_used_again_for_the_next_request_but_not_for_one_beside_it() -> None:
    answer = writes(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY)
    async with serving(answer) as (raw, url), client_of(url) as client:
        for _ in range(3):
            assert (await ask(client)).ok
        assert raw.connections == 1
        records = await asyncio.gather(*(ask(client) for _ in range(4)))
        assert all(record.ok for record in records)
        assert raw.connections == 4


async def test_a_connection_that_the_server_will_end_is_not_used_again() -> None:
    answer = writes(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + LENGTH + b"\r\n" + BODY)
    async with serving(answer) as (raw, url), client_of(url) as client:
        for asked in (1, 2, 3):
            assert (await ask(client)).ok
            assert raw.connections == asked


async def test_a_connection_that_the_server_ended_without_a_word_is_not_used_again() -> None:
    answer = writes(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY, close=True)
    async with serving(answer) as (raw, url), client_of(url) as client:
        assert (await ask(client)).ok
        async with asyncio.timeout(30):
            while raw.connections == 1:  # a request may still meet the end that is on its way
                assert (await ask(client)).error in ("", "connection_lost")


async def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async def answer(writer: asyncio.StreamWriter, index: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY)
        if index == 0:
            await asyncio.sleep(0.1)
            writer.write(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")

    async with serving(answer) as (raw, url), client_of(url) as client:
        assert (await ask(client)).ok
        await eventually(lambda: raw.ended == 1)
        assert (await ask(client)).ok
        assert raw.connections == 2


async def test_the_key_and_the_host_are_sent() -> None:
    answer = writes(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY)
    async with serving(answer) as (raw, url), client_of(url + "/deep%20er/v1", "secret") as client:
        await ask(client)
    head = raw.requests[0].split("\r\n")
    assert head[0] == "POST /deep%20er/v1/chat/completions HTTP/1.1"
    assert {"authorization: Bearer secret", f"host: {url[7:]}", "content-type: application/json"} <= set(head)


async def test_tls_is_spoken_with_servers_that_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue("server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.cert, certificate.key)
    answer = writes(b"HTTP/1.1 200 OK\r\n" + LENGTH + b"\r\n" + BODY)
    async with serving(answer, context) as (_, url):
        async with client_of(url) as client:
            refused = await ask(client)
        assert refused.error == "connection_refused"
        assert "certificate" in refused.detail
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca))
        async with client_of(url) as client:
            assert (await ask(client)).ok


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:x", "http://a:99999", "http://user:key@a"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BenchError, match="--base-url"):
        client_of(url)


def test_a_key_that_is_no_header_is_refused() -> None:
    with pytest.raises(BenchError, match="API key"):
        client_of("http://a", "key\r\nx: y")
