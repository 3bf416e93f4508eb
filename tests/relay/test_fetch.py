"""A request of our own over the relay's connections."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from tests.relay.conftest import OK, Backend, Call, Script, eventually, say_ok

from rhizome_relay.fetch import BadAnswerError, Fetched, fetch
from rhizome_relay.picker import Origin
from rhizome_relay.pool import Pools
from rhizome_relay.settings import RelaySettings
from rhizome_testing.certificates import Authority


@dataclass
class Asked:
    """A backend, and the connections to it."""

    backend: Backend
    pools: Pools

    async def fetch(self, path: bytes = b"/health", *, base: bytes = b"", **options: Any) -> Fetched:
        options = {"timeout_s": 5.0} | options
        return await fetch(self.pools, Origin("127.0.0.1", self.backend.port, base), path, **options)


@pytest.fixture
async def asked() -> AsyncIterator[Asked]:
    mishaps: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: mishaps.append(context))
    backend = Backend(say_ok)
    await backend.start()
    asked = Asked(backend, Pools(RelaySettings()))
    yield asked
    asked.pools.close()
    await backend.stop()
    assert mishaps == []


def saying(*pieces: bytes) -> Script:
    async def script(call: Call) -> None:
        for piece in pieces:
            await call.send(piece)
            await asyncio.sleep(0)

    return script


async def test_returns_status_headers_and_body(asked: Asked) -> None:
    asked.backend.script = saying(
        b"HTTP/1.1 503 Busy\r\nX-A: 1\r\nx-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"2\r\nde\r\n0\r\n\r\n",
    )
    assert await asked.fetch() == Fetched(
        503, [(b"x-a", b"1"), (b"x-a", b"2"), (b"transfer-encoding", b"chunked")], b"abcde"
    )


async def test_sends_path_below_the_base_host_and_headers(asked: Asked) -> None:
    headers = ((b"authorization", b"Bearer k"), (b"accept", b"text/plain"))
    await asked.fetch(b"/metrics?a=%20b", base=b"/inner", headers=headers)
    received = asked.backend.received[0]
    assert received.line == b"GET /inner/metrics?a=%20b HTTP/1.1"
    assert received.values(b"host") == [b"127.0.0.1:%d" % asked.backend.port]
    assert received.values(b"authorization") == [b"Bearer k"]
    assert received.values(b"accept") == [b"text/plain"]
    assert received.values(b"content-length") == []


async def test_sends_a_body(asked: Asked) -> None:
    await asked.fetch(method=b"POST", body=b"{}")
    await asked.fetch(method=b"POST")
    first, second = asked.backend.received
    assert (first.line, first.body) == (b"POST /health HTTP/1.1", b"{}")
    assert second.values(b"content-length") == [b"0"]


async def test_keeps_its_connection_for_the_next_request(asked: Asked) -> None:
    for _ in range(5):
        assert (await asked.fetch()).body == b"ok"
    assert asked.backend.accepted == 1
    await asyncio.gather(*(asked.fetch() for _ in range(4)))
    assert asked.backend.accepted == asked.pools.open == 4


async def test_a_connection_that_went_stale_is_replaced(asked: Asked) -> None:
    """The backend closes just as the next request goes out, as servers do after so many idle seconds."""

    async def answer_once(call: Call) -> None:
        if len(asked.backend.received) == 2:
            call.writer.close()
        else:
            await call.send(OK)

    asked.backend.script = answer_once
    await asked.fetch()
    assert (await asked.fetch()).body == b"ok"
    assert asked.backend.accepted == 2
    assert len(asked.backend.received) == 3


async def test_is_retried_only_once(asked: Asked) -> None:
    await asked.fetch()

    async def hang_up(call: Call) -> None:
        call.writer.close()

    asked.backend.script = hang_up
    with pytest.raises(ConnectionResetError, match="closed the connection"):
        await asked.fetch()
    assert len(asked.backend.received) == 3


async def test_an_answer_that_has_begun_is_not_asked_for_again(asked: Asked) -> None:
    await asked.fetch()

    async def break_off(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
        call.writer.close()

    asked.backend.script = break_off
    with pytest.raises(ConnectionResetError):
        await asked.fetch()
    assert len(asked.backend.received) == 2
    assert asked.pools.open == 0


async def test_head_has_no_body(asked: Asked) -> None:
    asked.backend.script = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert (await asked.fetch(method=b"HEAD")).body == b""
    assert (await asked.fetch(method=b"HEAD")).status == 200
    assert asked.backend.accepted == 1


async def test_a_body_may_end_with_the_connection(asked: Asked) -> None:
    async def until_close(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        call.writer.close()

    asked.backend.script = until_close
    assert (await asked.fetch()).body == b"all of it"
    await eventually(lambda: asked.pools.open == 0)


async def test_early_hints_are_skipped(asked: Asked) -> None:
    asked.backend.script = saying(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", OK)
    assert (await asked.fetch()).status == 200


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    ],
)
async def test_what_is_no_http_response_is_said_to_be_none(asked: Asked, answer: bytes) -> None:
    asked.backend.script = saying(answer)
    with pytest.raises(BadAnswerError):
        await asked.fetch()
    await eventually(lambda: asked.backend.open == 0)


@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 101\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n65\r\n"],
    ids=["said", "sent"],
)
async def test_a_longer_answer_is_refused(asked: Asked, head: bytes) -> None:
    asked.backend.script = saying(b"HTTP/1.1 200 OK\r\n", head, b"x" * 101)
    with pytest.raises(BadAnswerError, match="longer than 100 bytes"):
        await asked.fetch(max_bytes=100)
    await eventually(lambda: asked.backend.open == 0)


async def test_an_answer_may_be_as_long_as_allowed(asked: Asked) -> None:
    asked.backend.script = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b"x" * 100)
    assert len((await asked.fetch(max_bytes=100)).body) == 100


async def test_nobody_listening_is_an_os_error(asked: Asked) -> None:
    await asked.backend.stop()
    with pytest.raises(OSError, match=r"(?i)connect"):
        await asked.fetch()


async def test_no_answer_in_time_closes_the_connection(asked: Asked) -> None:
    asked.backend.script = Call.until_closed
    with pytest.raises(TimeoutError):
        await asked.fetch(timeout_s=0.05)
    await eventually(lambda: asked.backend.open == 0)
    assert asked.pools.open == 0


async def test_cancelling_closes_the_connection(asked: Asked) -> None:
    asked.backend.script = Call.until_closed
    asking = asyncio.create_task(asked.fetch())
    await eventually(lambda: len(asked.backend.received) == 1)
    asking.cancel()
    await eventually(lambda: asked.backend.open == 0)
    assert asking.cancelled()


async def test_what_follows_an_answer_is_nobodys(asked: Asked) -> None:
    asked.backend.script = saying(OK + OK)
    assert (await asked.fetch()).body == b"ok"
    assert (await asked.fetch()).body == b"ok"
    assert asked.backend.accepted == 2


async def test_speaks_tls_and_believes_only_its_authority(tmp_path: Path, asked: Asked) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    issued = authority.issue("backend")
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(issued.cert, issued.key)
    conversations: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.append(cast("asyncio.Task[None]", asyncio.current_task()))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(OK)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=own)
    port = server.sockets[0].getsockname()[1]
    believing = Origin("127.0.0.1", port, tls=ssl.create_default_context(cafile=authority.ca))
    for _ in range(2):
        assert (await fetch(asked.pools, believing, b"/", timeout_s=5.0)).body == b"ok"
    assert len(conversations) == 1
    doubting = Origin("127.0.0.1", port, tls=ssl.create_default_context(cafile=stranger.ca))
    with pytest.raises(OSError, match="certificate verify failed"):
        await fetch(asked.pools, doubting, b"/", timeout_s=5.0)
    asked.pools.close()
    server.close()
    await asyncio.gather(*conversations)
