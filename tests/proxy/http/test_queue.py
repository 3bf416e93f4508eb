"""Requests that wait for a backend with room, as their clients see it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import httpx
import orjson
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, TEXT, Bench, Face, url
from tests.relay.conftest import Call, eventually, say_ok

from rhizome_routing.admission import Ticket
from rhizome_testing.compiled_modules import interpreted

COMMENT = b": waiting for a backend\n\n"
STREAM = {**CHATS, "stream": True}


async def full(bench: Bench, **settings: Any) -> Face:
    """A proxy with one place, which is taken."""
    server = await bench.simulate(itl_base_ms=2.0)
    face = await bench.proxy(server, max_in_flight=1, **settings)
    relay = face.proxy._http._relay
    relay.settings = dataclasses.replace(relay.settings, comment_s=0.02)
    server.faults.stall, server.faults.count = 1, 1
    holder = await face.begin(CHAT, STREAM)
    await holder.reader.readuntil(b"content")
    return face


def waiting(face: Face) -> int:
    return face.proxy.router.admissions.waiting()


async def test_a_stream_hears_comments_until_its_turn(bench: Bench):
    face = await full(bench)
    stream = asyncio.create_task(face.stream(CHAT, {**CHATS, "max_tokens": 5}))
    await eventually(lambda: waiting(face) == 1)
    for _ in range(10):  # turns of the loop, as comments are: a machine that does other work delays both
        await asyncio.sleep(0.02)
    face.peers[0].writer.close()
    answer = await stream
    assert answer.done and answer.whole and len(answer.text) == 20
    assert answer.body.startswith(COMMENT) and answer.body.count(COMMENT) > 1
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_stream_that_waited_goes_on_elsewhere_like_any_other(bench: Bench):
    face = await full(bench)
    stream = asyncio.create_task(face.stream(CHAT, {**CHATS, "max_tokens": 9}))
    await eventually(lambda: waiting(face) == 1)
    server = bench.servers[0]
    server.faults.stall, server.faults.reset, server.faults.count = None, 4, 1
    face.peers[0].writer.close()
    answer = await stream
    assert answer.done and len(answer.text) == 36
    assert face.proxy.router.counts.resumes == 1


async def test_who_waits_too_long_hears_it(bench: Bench):
    face = await full(bench, queue_timeout_s=0.2)
    answer = await face.stream(CHAT, CHATS)
    assert answer.status == 200 and answer.whole and answer.done
    assert answer.error is not None and answer.error["type"] == "server_error"
    refused = await face.post(CHAT, CHATS)
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    assert face.proxy.router.http.outcomes[("", "503", "503")] == 2
    face.peers[0].writer.close()


async def test_who_leaves_the_queue_frees_the_place(bench: Bench):
    face = await full(bench)
    peers = [await face.begin(CHAT, STREAM) for _ in range(3)]
    await eventually(lambda: waiting(face) == 3)
    for peer in peers:
        peer.writer.transport.abort()
    await eventually(lambda: waiting(face) == 0)
    face.peers[0].writer.close()
    assert (await face.post(CHAT, {**CHATS, "max_tokens": 1})).status_code == 200
    assert bench.servers[0].engine.totals.completed == 1, "of those who left nobody was served"


async def test_what_the_backend_refuses_behind_comments_is_an_event(bench: Bench):
    face = await full(bench)
    peer = await face.begin(CHAT, {"messages": [1], "stream": True})
    await asyncio.wait_for(peer.reader.readuntil(COMMENT), 10)
    face.peers[0].writer.close()
    rest = await asyncio.wait_for(peer.reader.readuntil(b"\r\n0\r\n\r\n"), 10)
    event = next(line for line in rest.split(b"\n") if line.startswith(b"data: {"))
    assert "messages" in orjson.loads(event[6:])["error"]["message"]
    assert rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_what_is_no_generation_does_not_wait(bench: Bench):
    face = await full(bench)
    assert (await face.client.get("/v1/models")).status_code == 200
    assert (await face.client.get("/v1/absent")).status_code == 404
    face.peers[0].writer.close()


@pytest.mark.parametrize("options", ["", "?alias=*:scripted"])
async def test_names_that_are_made_up_give_a_tenant_no_more_turns(bench: Bench, options):
    went: list[bytes] = []
    first = asyncio.Event()

    async def answer(call: Call) -> None:
        went.append(call.request.body)
        if len(went) == 1:
            await first.wait()
        await say_ok(call)

    server = await bench.script(answer)
    face = await bench.proxy(backends=url(server) + options, max_in_flight=1)

    def ask(number: int, tenant: str) -> asyncio.Task[httpx.Response]:
        asked = {"model": f"made-up-{number}", "prompt": f"of {tenant}", "max_tokens": 5}
        return asyncio.create_task(face.post(TEXT, asked, authorization=f"Bearer {tenant}"))

    asks = [ask(number, "heavy") for number in range(20)]
    await eventually(lambda: waiting(face) == 19)
    asks.append(ask(20, "light"))
    await eventually(lambda: waiting(face) == 20)
    first.set()
    assert {answer.status_code for answer in await asyncio.gather(*asks)} == {200}
    turn = next(turn for turn, body in enumerate(went) if b"light" in body)
    assert turn <= 2


@interpreted
async def test_what_waited_pays_for_what_it_really_got(bench: Bench, monkeypatch):
    paid: list[tuple[int, int]] = []
    release = Ticket.release

    def note(ticket: Ticket, used_tokens: int | None = None) -> None:
        paid.append((ticket.tokens, used_tokens or 0))
        release(ticket, used_tokens)

    monkeypatch.setattr(Ticket, "release", note)
    face = await full(bench)
    whole = asyncio.create_task(face.post(CHAT, {**CHATS, "max_tokens": 7}))
    await eventually(lambda: waiting(face) == 1)
    face.peers[0].writer.close()
    assert (await whole).json()["usage"]["completion_tokens"] == 7
    await face.stream(CHAT, {**CHATS, "stream": True, "max_tokens": 40})
    (_, _), (expected, used), (more, streamed) = paid  # the first one is the holder of the place
    prompt = expected - 7
    assert used == prompt + 7
    assert more == prompt + 40
    assert prompt < streamed <= prompt + 40 + 3  # the role, the reason and the end are pieces, too
