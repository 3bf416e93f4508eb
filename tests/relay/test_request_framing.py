"""Requests that two servers could read in two ways reach no backend."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from tests.relay.conftest import GET, OK, Call, eventually, post, say_ok

POST = b"POST /v1/x HTTP/1.1\r\nHost: a\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

MALFORMED = {
    "both lengths": POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "both lengths, chunked first": POST + CHUNKED + b"Content-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "the same length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "a hexadecimal length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "an empty length": POST + b"Content-Length: \r\n\r\n",
    "a huge length": POST + b"Content-Length: 18446744073709551619\r\n\r\nabc",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice, in two lines": POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "chunked after a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /v1/x HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "a folded line": POST + b"X: a\r\n b\r\n\r\n",
    "a folded first line": b"GET /v1/x HTTP/1.1\r\n Host: a\r\n\r\n",
    "a bare line feed": b"GET /v1/x HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "bare line feeds": b"GET /v1/x HTTP/1.1\nHost: a\n\n",
    "a bare carriage return": b"GET /v1/x HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "a zero byte": b"GET /v1/x HTTP/1.1\r\nHost: a\x00\r\n\r\n",
    "chunks ended by line feeds": POST + CHUNKED + b"\r\n3\nabc\n0\n\n",
    "a chunk that is too long": POST + CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n",
    "a chunk size with a prefix": POST + CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "a chunk size with a space": POST + CHUNKED + b"\r\n3 \r\nabc\r\n0\r\n\r\n",
    "a chunk size that overflows": POST + CHUNKED + b"\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "no host": b"GET /v1/x HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "an unknown method": b"FETCH /v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a fragment": b"GET /v1/x#y HTTP/1.1\r\nHost: a\r\n\r\n",
    "no path": b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "another scheme": b"GET ftp://a/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "a user in the target": b"GET http://u@a/v1/x HTTP/1.1\r\nHost: a\r\n\r\n",
    "raw bytes in the path": b"GET /v1/\xff HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED.keys())
async def test_a_malformed_request_is_refused(bed: Any, raw: bytes) -> None:
    running = await bed(say_ok)
    peer = await running.peer()
    response = await peer.ask(raw)
    assert response.status in (400, 501)
    assert response.values(b"content-type") == [b"application/json"]
    assert response.values(b"x-request-id")
    (date,) = response.values(b"date")
    assert abs(parsedate_to_datetime(date.decode()).timestamp() - time.time()) < 300
    assert b'"error"' in response.body
    assert await peer.closed()
    assert not running.backend.received


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /v1/x\r\n\r\n", 505),
        (b"GET /v1/x HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
        (b"TRACE /v1/x HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (POST + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\n", 417),
        (b"GET /v1/x HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 501),
    ],
)
async def test_what_is_not_offered_has_its_status(bed: Any, raw: bytes, status: int) -> None:
    running = await bed(say_ok)
    response = await running.ask(raw)
    assert response.status == status
    if status == 405:
        assert response.values(b"allow") == [b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"]
    assert not running.backend.received


@pytest.mark.parametrize("size", [1, 7])
async def test_a_smuggled_request_is_answered_by_nobody(bed: Any, size: int) -> None:
    running = await bed(say_ok)
    peer = await running.peer()
    raw = POST + b"Content-Length: 4\r\n" + CHUNKED + b"\r\n0\r\n\r\nGET /slots HTTP/1.1\r\nHost: a\r\n\r\n"
    for start in range(0, len(raw), size):
        await peer.send(raw[start : start + size])
    assert (await peer.read()).status == 400
    assert await peer.closed()
    assert not running.backend.received


@pytest.mark.parametrize(
    "path",
    [
        b"/slots", b"/metrics", b"/sleep", b"/reset_prefix_cache", b"/", b"/v1", b"/api/pull",
        b"/v1/load_lora_adapter", b"/v1/load_lora_adapter/", b"/v1/load%5flora_adapter",
        b"/v1%2fload_lora_adapter",
    ],
)  # fmt: skip
async def test_operators_paths_do_not_exist(bed: Any, path: bytes) -> None:
    running = await bed(say_ok)
    assert (await running.ask(b"POST %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)).status == 404
    assert not running.backend.received


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/../slots", b"/v1/..", b"/v1/./x", b"/v1/%2e%2e/slots", b"/v1/.%2E/slots", b"//v1/x", b"/v1//x",
        b"/v1/..%2fslots", b"/v1/%2e%2e%2fslots", b"/v1/..%5cslots", b"/v1/..\\slots",
        b"/v1/%252e%252e/slots", b"/v1/x%00", b"/v1/..;/slots",
    ],
)  # fmt: skip
async def test_a_path_with_two_readings_is_refused(bed: Any, path: bytes) -> None:
    running = await bed(say_ok)
    assert (await running.ask(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % path)).status == 400
    assert not running.backend.received


async def test_path_and_query_go_through_as_sent(bed: Any) -> None:
    running = await bed(say_ok)
    target = b"/v1/models/org%2Fname.v2?a=%20b&c=../d&e=http://f"
    await running.ask(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert running.backend.received[0].line == b"GET %b HTTP/1.1" % target


async def test_an_absolute_target_names_the_host(bed: Any) -> None:
    running = await bed(say_ok)
    await running.ask(b"GET http://real.example/v1/x?y HTTP/1.1\r\nHost: other\r\n\r\n")
    received = running.backend.received[0]
    assert received.line == b"GET /v1/x?y HTTP/1.1"
    assert received.values(b"x-forwarded-host") == [b"real.example"]


async def test_headers_have_a_limit(bed: Any) -> None:
    running = await bed(say_ok, max_head_bytes=1000, max_headers=10)
    long = b"GET /v1/x HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2000
    assert (await running.ask(long)).status == 431  # before it is complete
    many = b"GET /v1/x HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 11
    assert (await running.ask(many + b"\r\n")).status == 431
    assert (await running.ask(b"GET /v1/" + b"x" * 2000 + b" HTTP/1.1\r\n")).status == 414
    peer = await running.peer()
    await peer.send(POST + CHUNKED + b"Expect: 100-continue\r\n\r\n")
    await peer.reader.readexactly(25)
    assert (await peer.ask(b"0\r\nT: " + b"x" * 2000)).status == 431
    assert not running.backend.received


async def test_a_body_has_a_limit(bed: Any) -> None:
    running = await bed(say_ok, max_body_bytes=1000, replay_bytes=100)
    assert (await running.ask(post(b"x" * 1000))).status == 200
    announced = POST + b"Content-Length: 1001\r\nExpect: 100-continue\r\n\r\n"
    assert (await running.ask(announced)).status == 413
    chunked = POST + CHUNKED + b"\r\n" + b"1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n" + b"x" * 501 + b"\r\n"
    peer = await running.peer()
    assert (await peer.ask(chunked)).status == 413
    assert len(running.backend.received) == 1


async def test_an_error_reaches_a_client_that_still_sends(bed: Any) -> None:
    running = await bed(say_ok, max_body_bytes=1000)
    peer = await running.peer()
    await peer.send(POST + b"Content-Length: 9000000\r\n\r\n")
    await peer.send(b"x" * 3_000_000)
    assert (await peer.read()).status == 413


async def test_a_client_that_asks_first_is_told_to_go_on(bed: Any) -> None:
    running = await bed(say_ok)
    peer = await running.peer()
    await peer.send(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    assert await peer.reader.readexactly(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await peer.ask(b"abc")).status == 200
    assert running.backend.received[0].body == b"abc"
    assert not running.backend.received[0].values(b"expect")


async def test_a_long_body_is_passed_on_as_it_arrives(bed: Any) -> None:
    seen: list[int] = []

    async def count(call: Call) -> None:
        seen.append(len(call.request.body))
        await call.send(OK)

    running = await bed(count, replay_bytes=1000, max_body_bytes=10_000_000)
    peer = await running.peer()
    assert (await peer.ask(post(b"x" * 5_000_000))).status == 200
    body = b"y" * 300_000
    chunks = b"".join(b"%x\r\n%b\r\n" % (1000, body[i : i + 1000]) for i in range(0, 300_000, 1000))
    assert (await peer.ask(POST + CHUNKED + b"\r\n" + chunks + b"0\r\n\r\n")).status == 200
    assert seen == [5_000_000, 300_000]
    assert running.backend.received[1].values(b"transfer-encoding") == [b"chunked"]


async def test_a_chunked_body_is_framed_anew(bed: Any) -> None:
    running = await bed(say_ok)
    await running.ask(POST + CHUNKED + b"\r\n3;a=b\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: x\r\n\r\n")
    received = running.backend.received[0]
    assert received.body == b"abcde"
    assert received.values(b"content-length") == [b"5"]
    assert not received.values(b"transfer-encoding")
    assert not received.values(b"trailer")


@pytest.mark.parametrize("size", [1, 1000])
async def test_an_offer_of_http2_is_ignored(bed: Any, size: int) -> None:
    running = await bed(say_ok)
    peer = await running.peer()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
    raw = (
        POST + offer + b"Content-Length: 3\r\n\r\nabc" + POST + offer + CHUNKED + b"\r\n2\r\nde\r\n0\r\n\r\n"
    )
    raw += b"GET /v1/y HTTP/1.1\r\nHost: a\r\n" + offer + b"\r\n" + GET
    for start in range(0, len(raw), size):
        await peer.send(raw[start : start + size])
    assert [(await peer.read()).status for _ in range(4)] == [200] * 4
    assert [request.body for request in running.backend.received] == [b"abc", b"de", b"", b""]
    for name in (b"upgrade", b"http2-settings", b"connection"):
        assert not running.backend.received[0].values(name)


async def test_slow_headers_and_bodies_time_out(bed: Any) -> None:
    running = await bed(say_ok, header_timeout_s=0.1, body_timeout_s=0.1)
    for raw in (b"GET /v1/x HTTP/1.1\r\n", POST + b"Content-Length: 5\r\n\r\nab"):
        assert (await running.ask(raw)).status == 408
    silent = await running.peer()
    assert await silent.closed()
    await eventually(lambda: running.server.connections == 0)
    assert not running.backend.received


async def test_bad_chunks_of_a_last_request_are_refused_too(bed: Any) -> None:
    running = await bed(say_ok)
    raw = POST + b"Connection: close\r\n" + CHUNKED + b"\r\nzz\r\n"
    assert (await running.ask(raw)).status == 400
