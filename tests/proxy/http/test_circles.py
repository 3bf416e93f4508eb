"""A request is gone with its answer, a connection with its end: nothing waits for the garbage collector."""

import httpx
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, Bench
from tests.relay.conftest import Call

from rhizome_testing.circles import left_in_circles


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"model": "of somebody else"}])
async def test_nothing_of_a_request_outlives_it(bench: Bench, fields: dict[str, object]) -> None:
    face = await bench.proxy(await bench.simulate())

    async def ask() -> None:
        for _ in range(5):
            answer = await face.post(CHAT, {**CHATS, "max_tokens": 5, **fields})
            assert answer.status_code == (404 if "model" in fields else 200)

    assert not await left_in_circles(ask)


async def test_nothing_of_a_connection_outlives_it(bench: Bench) -> None:
    face = await bench.proxy(await bench.simulate())
    url = f"http://127.0.0.1:{face.proxy.http_port}{CHAT}"

    async def connect() -> None:
        for _ in range(5):
            async with httpx.AsyncClient(trust_env=False) as client:
                assert (await client.post(url, json={**CHATS, "max_tokens": 5})).status_code == 200

    assert not await left_in_circles(connect)


@pytest.mark.parametrize("head", [b"Connection: close\r\n", b""], ids=["closing", "garbage"])
async def test_nothing_of_a_backends_connection_outlives_it(bench: Bench, head: bytes) -> None:
    async def answer(call: Call) -> None:
        if head:
            await call.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: 2\r\n\r\n{}" % head)
        else:
            await call.send(b"NONSENSE\r\n\r\n")

    face = await bench.proxy(await bench.script(answer), eject_after=1000)

    async def ask() -> None:
        for _ in range(5):
            status = (await face.post(CHAT, CHATS)).status_code
            assert status == 200 if head else status in (502, 503)

    assert not await left_in_circles(ask)


async def test_nothing_of_a_request_outlives_it_that_nobody_serves(bench: Bench) -> None:
    face = await bench.proxy(backends="http://127.0.0.1:9", ready=0)

    async def ask() -> None:
        for _ in range(5):
            assert (await face.post(CHAT, CHATS)).status_code == 503

    assert not await left_in_circles(ask)
