"""What a client does below the API: connections, headers, encodings."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from rhizome_testing.talking_engine import Hang, Pause, Say, TalkingEngine

BODY = json.dumps({"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
HEALTH = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


class Connection:
    """A raw connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one response that has a length."""
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split(" ")[1]), headers, body

    async def closes(self) -> bytes:
        """Read to the end."""
        async with asyncio.timeout(5):
            return await self.reader.read()


@asynccontextmanager
async def connected(gateway) -> AsyncIterator[Connection]:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def test_an_offer_of_another_protocol_is_ignored_and_the_body_is_read(
    gateway, engine: TalkingEngine
) -> None:
    """Java's HTTP client sends its first request like this."""
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"
    async with connected(gateway) as connection:
        connection.writer.write(POST + offer + LENGTH + b"\r\n")
        connection.writer.write(BODY[:10])
        await connection.writer.drain()
        connection.writer.write(BODY[10:])
        assert (await connection.answer())[0] == 200
        connection.writer.write(POST + offer + b"transfer-encoding: chunked\r\n\r\n" + CHUNKED + HEALTH)
        assert (await connection.answer())[0] == 200
        assert (await connection.answer())[2] == b'{"status":"healthy"}'
        connection.writer.write(HEALTH.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n") + HEALTH)
        for _ in range(2):
            assert (await connection.answer())[2] == b'{"status":"healthy"}'
    assert len(engine.prompts) == 2


async def test_what_follows_the_last_request_of_a_connection_is_not_run(
    gateway, engine: TalkingEngine
) -> None:
    """Connections of HTTP/1.0 end with their first answer, whatever the client would like."""
    last = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"connection: keep-alive\r\n" + LENGTH + b"\r\n" + BODY
    async with connected(gateway) as connection:
        connection.writer.write(last + last)
        assert (await connection.closes()).count(b"HTTP/1.1 200 OK") == 1
    async with connected(gateway) as connection:  # by then the second would have reached the engine
        connection.writer.write(POST + LENGTH + b"\r\n" + BODY)
        assert (await connection.answer())[0] == 200
    assert len(engine.prompts) == 2


async def test_requests_of_one_connection_are_answered_in_order(gateway) -> None:
    async with connected(gateway) as connection:
        connection.writer.write(POST + LENGTH + b"\r\n" + BODY + HEALTH)
        assert b"chat.completion" in (await connection.answer())[2]
        assert (await connection.answer())[2] == b'{"status":"healthy"}'


async def test_a_connection_lives_on_after_a_body_that_was_refused_unread(gateway) -> None:
    async with connected(gateway) as connection:
        connection.writer.write(POST + b"content-length: 5000000\r\n\r\n")
        assert (await connection.answer())[0] == 413
        connection.writer.write(b" " * 5_000_000 + HEALTH)
        assert (await connection.answer())[0] == 200


async def test_who_asked_before_sending_too_much_is_hung_up_on(gateway) -> None:
    async with connected(gateway) as connection:
        connection.writer.write(POST + b"expect: 100-continue\r\ncontent-length: 5000000\r\n\r\n")
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (413, "close")
        assert await connection.closes() == b""


async def test_rubbish_behind_a_request_does_not_get_into_its_answer(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("Hel"), Hang()]
    stream = json.dumps(json.loads(BODY) | {"stream": True}).encode()
    async with connected(gateway) as connection:
        connection.writer.write(POST + b"content-length: %d\r\n\r\n" % len(stream) + stream)
        await asyncio.wait_for(connection.reader.readuntil(b"data: "), 5)
        connection.writer.write(b"NONSENSE\r\n\r\n")
        assert b"HTTP/1.1" not in await connection.closes()


async def test_compressed_bodies_are_refused_by_name(gateway) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = await gateway.http.post("/v1/chat/completions", content=gzip.compress(BODY), headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_content_encoding"


async def test_the_documentation_needs_no_other_host(gateway) -> None:
    page = (await gateway.http.get("/docs")).text
    assert "http://" not in page and "https://" not in page
    script = await gateway.http.get("/static-offline-docs/swagger-ui-bundle.js")
    assert script.status_code == 200
    for method, path, status in (
        ("GET", "/static-offline-docs/nothing.js", 404),
        ("GET", "/static-offline-docs/..%2f..%2fetc%2fpasswd", 404),
        ("POST", "/static-offline-docs/swagger-ui-bundle.js", 405),
    ):
        answer = await gateway.http.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_client_that_dawdles_over_its_headers_is_hung_up_on(
    engine: TalkingEngine, start_gateway
) -> None:
    async with start_gateway(engine.target, header_timeout_s=0.3) as gateway:
        await gateway.becomes_ready()
        port = int(gateway.url.rpartition(":")[2])
        for beginning in (b"GET /health HT", HEALTH + b"GET /hea"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(beginning)
            answer = await asyncio.wait_for(reader.read(), 5)
            assert b"408 Request Timeout" in answer
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        engine.script = lambda prompt: [Pause(0.6), Say("late")]
        body = b'{"model":"talking-model","messages":[{"role":"user","content":"Hi"}]}'
        writer.write(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert b"200 OK" in await asyncio.wait_for(reader.readline(), 5)  # answers may take their time
        writer.close()
