"""A request is gone with its answer, a connection with its end: nothing waits for the garbage collector."""

import httpx
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, Bench

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
