"""Streams that cannot go on elsewhere end visibly: an error event, no `[DONE]`, no orderly end."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import orjson
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, TEXT, Bench
from tests.relay.conftest import SSE_HEAD, Call, eventually

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CHAT_OPTIONS: list[dict[str, Any]] = [
    {"tools": [TOOL]},
    {"functions": [{"name": "f"}]},
    {"logprobs": True, "top_logprobs": 2},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.5},
    {"logit_bias": {"5": 10}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
    {"structured_outputs": {"regex": "a*"}},
    {"grammar": "root ::= [a-z]"},
    {"messages": [*CHATS["messages"], {"role": "assistant", "content": "Once"}]},
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "continue_final_message": True,
    },
]
TEXT_OPTIONS: list[dict[str, Any]] = [
    {"prompt": [1, 2, 3]},
    {"prompt": "x", "logprobs": 0},
    {"prompt": "x", "echo": True},
    {"prompt": "x", "suffix": "y"},
    {"prompt": "x", "best_of": 2},
]


def cut(answer: Any) -> bool:
    return (
        answer.status == 200
        and not answer.done
        and not answer.whole
        and answer.error["code"] == "stream_interrupted"
    )


async def face_of(bench: Bench) -> Any:
    face = await bench.proxy(await bench.simulate(), await bench.simulate())
    for server in bench.servers:
        server.faults.reset, server.faults.count = 4, 1
    return face


@pytest.mark.parametrize("options", CHAT_OPTIONS, ids=lambda options: next(iter(options)))
async def test_a_chat(bench: Bench, options):
    face = await face_of(bench)
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 20, **options})
    assert cut(answer) and len(answer.text) == 16
    assert face.proxy.router.counts.resumes == 0


@pytest.mark.parametrize("options", TEXT_OPTIONS, ids=lambda options: list(options)[-1])
async def test_a_completion(bench: Bench, options):
    face = await face_of(bench)
    answer = await face.stream(TEXT, {"max_tokens": 20, **options})
    assert cut(answer) and len(answer.text) == 16


async def test_whoever_opts_out(bench: Bench):
    face = await face_of(bench)
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 20}, x_rhizome_no_resume="1")
    assert cut(answer) and len(answer.text) == 16


async def test_what_asks_for_plain_text_goes_on(bench: Bench):
    face = await face_of(bench)
    plain = {
        "response_format": {"type": "text"},
        "tools": [],
        "logprobs": False,
        "n": 1,
        "presence_penalty": 0,
    }
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 20, **plain})
    assert answer.done


def said(**delta: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": None}]
    return b"data: %b\n\n" % orjson.dumps({"id": "x", "choices": choices})


@pytest.mark.parametrize(
    "odd",
    [
        said(tool_calls=[{"index": 0}]),
        said(reasoning_content="hm"),
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [5]}\n\n',
        b'data: {"choices": [{"delta": {"content": 5}}]}\n\n',
        b'data: {"error": {"message": "out of memory"}}\n\n',
        b"data: [1]\n\n",
        b"data: hello\n\n",
        b"data: \xff\xfe\n\n",
        b'event: error\ndata: {"message": 5\ndata: }\n\n',
        b"data: " + b"x" * (1 << 20) + b"xx",
    ],
    ids=lambda odd: odd[:40].decode("latin-1"),
)
async def test_what_the_next_server_could_not_be_told(bench: Bench, odd):
    async def lose(call: Call) -> None:
        await call.send(SSE_HEAD)
        for event in (said(role="assistant"), said(content="one"), odd):
            await call.event(event)
        call.writer.close()

    face = await bench.proxy(await bench.script(lose))
    peer = await face.begin(CHAT, {**CHATS, "stream": True})
    got = bytearray()
    while part := await asyncio.wait_for(peer.reader.read(65536), 20):
        got += part
    assert odd[:1000] in got, "the client gets it as it came"
    assert b"[DONE]" not in got and not got.endswith(b"0\r\n\r\n")
    assert len(bench.backends[0].received) >= 1
    assert face.proxy.router.counts.resumes == 0


async def test_an_encoded_stream_passes_as_it_is(bench: Bench):
    zipped = b"\x1f\x8b no line ends here"

    async def send(call: Call) -> None:
        await call.send(SSE_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n"))
        await call.event(zipped)
        await call.until_closed()

    face = await bench.proxy(await bench.script(send))
    peer = await face.begin(CHAT, {**CHATS, "stream": True})
    await asyncio.wait_for(peer.reader.readuntil(zipped), 10)
    peer.writer.close()
    await eventually(lambda: not face.proxy.router.http.open)


async def test_a_stream_of_known_length_is_not_made_longer(bench: Bench):
    async def lose(call: Call) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 1000\r\n\r\n"
        await call.send(head + said(content="one"))
        call.writer.close()

    face = await bench.proxy(await bench.script(lose), await bench.simulate(), policy="round_robin")
    face.backend(bench.servers[0]).drain()
    peer = await face.begin(CHAT, {**CHATS, "stream": True})
    await peer.reader.readuntil(b"one")
    rest = b""
    with contextlib.suppress(ConnectionError):
        rest = await asyncio.wait_for(peer.reader.read(), 10)
    assert len(rest) < 900
    face.backend(bench.servers[0]).drain(False)


async def test_a_stream_that_ends_without_done_is_left_as_it_is(bench: Bench):
    async def end(call: Call) -> None:
        await call.send(SSE_HEAD)
        await call.event(said(content="one") + b"data: half")
        await call.send(b"0\r\n\r\n")

    face = await bench.proxy(await bench.script(end))
    async with face.client.stream("POST", CHAT, json={**CHATS, "stream": True}) as answer:
        body = b"".join([part async for part in answer.aiter_raw()])
    assert body == said(content="one") + b"data: half"
