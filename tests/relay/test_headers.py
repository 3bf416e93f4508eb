"""What passes the proxy in both directions, and what it adds."""

from __future__ import annotations

import ipaddress
from typing import Any

import orjson
import pytest
from tests.relay.conftest import GET, Call, post, say_ok


def get(*headers: bytes) -> bytes:
    return GET[:-2] + b"".join(header + b"\r\n" for header in headers) + b"\r\n"


async def test_headers_for_one_hop_stay_here(bed: Any) -> None:
    running = await bed(say_ok)
    await running.ask(
        get(
            b"Connection: keep-alive, X-Private",
            b"connection: x-other",
            b"X-Private: 1",
            b"X-Other: 1",
            b"Keep-Alive: timeout=5",
            b"Proxy-Connection: keep-alive",
            b"Proxy-Authorization: Basic eA==",
            b"TE: gzip",
            b"Trailer: X-Sum",
            b"X-Public: 1",
        )
    )
    received = running.backend.received[0]
    names = {line.split(b":")[0].lower() for line in received.head.split(b"\r\n")[1:] if line}
    assert names == {
        b"host", b"x-public", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"via",
        b"x-request-id",
    }  # fmt: skip


async def test_a_response_loses_headers_for_one_hop(bed: Any) -> None:
    async def script(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\nKeep-Alive: x\r\n"
            b"Proxy-Authenticate: Basic\r\nTrailer: X\r\nUpgrade: h2c\r\nX-Rhizome-Backend: liar\r\n"
            b"Content-Length: 0\r\nX-Public: 1\r\n\r\n"
        )

    response = await (await bed(script)).ask(GET)
    assert [name for name, _ in response.headers] == [
        b"x-public", b"via", b"content-length", b"x-request-id", b"x-rhizome-backend", b"x-rhizome-attempts",
        b"server-timing",
    ]  # fmt: skip
    assert response.values(b"x-rhizome-backend") == [b"b0"]
    assert response.values(b"x-rhizome-attempts") == [b"1"]


async def test_repeated_headers_stay_repeated(bed: Any) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n")

    running = await bed(script)
    response = await running.ask(get(b"X-A: 1", b"X-B: 2", b"X-A: 3"))
    assert response.values(b"set-cookie") == [b"a", b"b"]
    assert running.backend.received[0].values(b"x-a") == [b"1", b"3"]


async def test_the_way_here_is_told(bed: Any) -> None:
    running = await bed(say_ok)
    lies = (
        b"X-Forwarded-For: 9.9.9.9",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: evil",
        b"Forwarded: for=9",
    )
    response = await running.ask(get(*lies, b"Via: 1.1 nginx"))
    received = running.backend.received[0]
    assert received.values(b"host") == [b"127.0.0.1:%d" % running.backend.port]
    assert received.values(b"x-forwarded-for") == [b"127.0.0.1"]
    assert received.values(b"x-forwarded-proto") == [b"http"]
    assert received.values(b"x-forwarded-host") == [b"api.example"]
    assert not received.values(b"forwarded")
    assert received.values(b"via") == [b"1.1 nginx", b"1.1 rhizome-test"]
    assert response.values(b"via") == [b"1.1 rhizome-test"]


async def test_a_trusted_proxy_is_believed(bed: Any) -> None:
    running = await bed(say_ok, trusted_proxies=(ipaddress.ip_network("127.0.0.0/8"),))
    told = (b"X-Forwarded-For: 9.9.9.9", b"X-Forwarded-Proto: https", b"X-Forwarded-Host: shown.example")
    await running.ask(get(*told))
    received = running.backend.received[0]
    assert received.values(b"x-forwarded-for") == [b"9.9.9.9, 127.0.0.1"]
    assert received.values(b"x-forwarded-proto") == [b"https"]
    assert received.values(b"x-forwarded-host") == [b"shown.example"]


async def test_a_loop_is_cut(bed: Any) -> None:
    running = await bed(say_ok)
    running.targets[0].origin = type(running.targets[0].origin)("127.0.0.1", running.server.port)
    assert (await running.ask(GET)).status == 508


SECRETS = (b"Authorization: Bearer theirs", b"X-Api-Key: theirs", b"Api-Key: theirs", b"Cookie: theirs")


async def test_credentials_of_clients_stay_here(bed: Any) -> None:
    running = await bed(say_ok)
    running.targets[0].headers = ((b"authorization", b"Bearer ours"),)
    await running.ask(get(*SECRETS))
    received = running.backend.received[0]
    assert b"theirs" not in received.head
    assert received.values(b"authorization") == [b"Bearer ours"]


async def test_credentials_pass_where_that_is_wanted(bed: Any) -> None:
    running = await bed(say_ok, forward_credentials=True)
    running.targets[0].headers = ((b"authorization", b"Bearer ours"),)
    await running.ask(get(*SECRETS))
    received = running.backend.received[0]
    assert received.values(b"authorization") == [b"Bearer ours"]
    assert received.values(b"cookie") == [b"theirs"]


async def test_a_request_keeps_its_id(bed: Any) -> None:
    running = await bed(say_ok)
    response = await running.ask(get(b"X-Request-Id: mine-1"))
    assert response.values(b"x-request-id") == [b"mine-1"]
    assert running.backend.received[0].values(b"x-request-id") == [b"mine-1"]
    odd = await running.ask(get(b"X-Request-Id: " + b"x" * 200))
    assert odd.values(b"x-request-id") == running.backend.received[1].values(b"x-request-id")
    assert len(odd.values(b"x-request-id")[0]) < 100


async def test_trailers_pass_to_those_who_take_them(bed: Any) -> None:
    async def script(call: Call) -> None:
        await call.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n"
            b"X-Sum: 1\r\nSet-Cookie: x\r\n\r\n"
        )

    running = await bed(script)
    peer = await running.peer()
    assert (await peer.ask(GET)).trailers == []
    response = await peer.ask(get(b"TE: trailers"))
    assert response.body == b"ok"
    assert response.trailers == [(b"x-sum", b"1")]
    assert running.backend.received[1].values(b"te") == [b"trailers"]


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
async def test_a_request_without_a_body_stays_without(bed: Any, method: bytes) -> None:
    running = await bed(say_ok)
    await running.ask(b"%b /v1/x HTTP/1.1\r\nHost: a\r\n\r\n" % method)
    received = running.backend.received[0]
    assert received.values(b"content-length") == ([b"0"] if method == b"POST" else [])
    assert not received.values(b"transfer-encoding")


async def test_timings_are_told(bed: Any) -> None:
    response = await (await bed(say_ok)).ask(GET)
    parts = [part.split(b";dur=") for part in response.values(b"server-timing")[0].split(b", ")]
    assert [name for name, _ in parts] == [b"queue", b"connect", b"ttfb"]
    assert all(float(duration) >= 0 for _, duration in parts)


async def test_a_picker_reads_the_body_once(bed: Any) -> None:
    running = await bed(say_ok)
    models: list[Any] = []

    def choose(request: Any) -> Any:
        assert request.json() is request.json()
        models.append((request.path, request.model, request.header(b"x-session")))
        return running.targets

    running.picker.choose = choose
    peer = await running.peer()
    for body in (b'{"model": "m"}', b'{"model": 1}', b"[]", b"{", b""):
        assert (await peer.ask(post(body, b"X-Session: s"))).status == 200
    assert models == [(b"/v1/chat/completions", model, b"s") for model in ("m", None, None, None, None)]


async def test_errors_are_openais(bed: Any) -> None:
    running = await bed(say_ok)
    running.picker.choose = lambda request: []
    response = await running.ask(post(b"{}"))
    assert response.status == 503
    assert response.values(b"retry-after") == [b"1"]
    error = orjson.loads(response.body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("server_error", "backend_unavailable")
