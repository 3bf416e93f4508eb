"""Whatever a client sends, the proxy passes it on or refuses it, and stays as it was; the fixture looks."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, TEXT, Bench, url
from tests.relay.conftest import Received, eventually, post, say_ok

DEEP = b'{"messages": ' + b"[" * 600 + b"]" * 600 + b', "model": "other", "stream": true}'

ODD = {
    "deep": DEEP,
    "deeper": b'{"messages": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "no object": b"[1, 2, 3]",
    "null": b"null",
    "a number": b"5",
    "nothing": b"",
    "no JSON": b"{",
    "NaN": b'{"messages": [], "temperature": NaN}',
    "a lone surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}], "stream": true}',
    "no UTF-8": b'{"messages": [{"role": "user", "content": "\xff"}]}',
    "twice the same": b'{"model": "a", "model": "b", "messages": [], "messages": 5, "stream": true}',
    "messages is a text": b'{"messages": "hi", "stream": true}',
    "messages is an object": b'{"messages": {"role": "user"}, "stream": true}',
    "messages of numbers": b'{"messages": [1, null, [2]], "stream": true}',
    "parts": b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "stream": true}',
    "stream is 1": b'{"messages": [{"role": "user"}], "stream": 1}',
    "stream is text": b'{"messages": [{"role": "user"}], "stream": "true"}',
    "model is a list": b'{"model": ["a"], "messages": [{}], "stream": true}',
    "an endless model": b'{"model": "' + b"m" * 200_000 + b'", "messages": [{}], "stream": true}',
    "options is a list": b'{"messages": [{"role": "user"}], "stream": true, "stream_options": [1]}',
    "n is a list": b'{"messages": [{"role": "user"}], "stream": true, "n": [1]}',
    "limits": b'{"messages": [{"role": "user"}], "max_tokens": -5, "max_completion_tokens": "9"}',
    "an endless limit": b'{"messages": [{"role": "user"}], "max_tokens": 99999999999999999999999}',
    "negative token ids": b'{"prompt": [-1, 5], "stream": true}',
    "huge token ids": b'{"prompt": [99999999999, 5], "stream": true}',
    "many prompts": b'{"prompt": ["a", [1, 2], null], "stream": true}',
    "no prompt": b'{"prompt": "", "stream": true}',
    "a session": b'{"messages": [{}], "user": 5, "prompt_cache_key": ["x"]}',
}


@pytest.mark.parametrize("odd", ODD, ids=str)
async def test_odd_documents_reach_the_backend_as_they_are(bench: Bench, odd):
    scripted = await bench.script(say_ok)
    face = await bench.proxy(scripted, policy="cost")
    for path in (CHAT, TEXT):
        answer = await face.client.post(path, content=ODD[odd])
        assert (answer.status_code, answer.content) == (200, b"ok")
    assert [one.body for one in posts(scripted.received)] == [ODD[odd]] * 2


def posts(received: list[Received]) -> list[Received]:
    return [one for one in received if one.line.startswith(b"POST")]


async def test_a_body_that_cannot_be_rewritten_is_refused(bench: Bench):
    scripted = await bench.script(say_ok)
    face = await bench.proxy(backends=f"{url(scripted)}?alias=other:scripted")
    answer = await face.client.post(CHAT, content=DEEP)
    assert answer.status_code == 400 and "nested" in answer.json()["error"]["message"]
    assert posts(scripted.received) == []


async def test_stream_1_is_relayed_but_not_followed(bench: Bench):
    server = await bench.simulate()
    face = await bench.proxy(server)
    answer = await face.post(CHAT, {**CHATS, "stream": 1, "max_tokens": 2})
    assert answer.json()["usage"]["completion_tokens"] == 2


async def test_a_prompt_beyond_what_is_held_streams_through(bench: Bench):
    scripted = await bench.script(say_ok)
    face = await bench.proxy(scripted, max_body_mib=16)
    big = b'{"prompt": "%b"}' % (b"x" * (9 << 20))
    assert (await face.client.post(TEXT, content=big)).status_code == 200
    assert posts(scripted.received)[0].body == big
    refused = await face.client.post(TEXT, content=b"x" * (17 << 20))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("name", ["x-rhizome-priority", "x-session-id", "traceparent", "x-rhizome-tenant"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"x" * 8000, b"%00", b""])
async def test_odd_headers(bench: Bench, name, value):
    face = await bench.proxy(await bench.simulate())
    body = orjson.dumps({**CHATS, "max_tokens": 1})
    peer = await face.peer()
    answer = await peer.ask(post(body, name.encode() + b": " + value))
    assert answer.status == (400 if name == "x-rhizome-priority" and value else 200)


async def test_requests_sent_ahead_are_answered_in_turn(bench: Bench):
    face = await bench.proxy(await bench.simulate())
    peer = await face.peer()
    stream = orjson.dumps({**CHATS, "stream": True, "max_tokens": 5})
    whole = orjson.dumps({**CHATS, "max_tokens": 1})
    await peer.send(post(stream) + post(whole) + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + post(stream))
    answers = [await peer.read() for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert answers[0].body.endswith(b"[DONE]\n\n") and answers[3].body.endswith(b"[DONE]\n\n")
    assert orjson.loads(answers[1].body)["usage"]["completion_tokens"] == 1


async def test_a_slow_reader_of_a_resumed_stream_gets_all_of_it(bench: Bench):
    one, other = await bench.simulate(itl_base_ms=0.05), await bench.simulate(itl_base_ms=0.05)
    face = await bench.proxy(one, other)
    for server in (one, other):
        server.faults.reset, server.faults.count = 2000, 1
    peer = await face.begin(CHAT, {**CHATS, "stream": True, "max_tokens": 6000})
    await eventually(lambda: face.proxy.router.http.open == 1)
    got = b""
    while not got.endswith(b"0\r\n\r\n"):
        got += await asyncio.wait_for(peer.reader.read(4096), 20)
    assert got.count(b'"content":"') == 6001
    assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
