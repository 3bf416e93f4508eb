"""Streams outlive their backend: the client cannot tell that there was a second one."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from tests.proxy.http.conftest import CHAT, CHATS, TEXT, Bench, Reference, url
from tests.relay.conftest import SSE_HEAD, Call, eventually

from rhizome_backends.spec import BackendSpec
from rhizome_testing.simulated_server import SimulatedServer

GREEDY = {"temperature": 0}
SEEDED = {"seed": 7}
ASKED = {CHAT: CHATS, TEXT: {"prompt": "Once upon a time"}}


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("path", [CHAT, TEXT], ids=["chat", "text"])
@pytest.mark.parametrize("kind", ["vllm", "sglang", "llamacpp"])
@pytest.mark.parametrize("fault", ["reset", "half_close"])
async def test_another_backend_goes_on_to_the_token(
    bench: Bench, expected: Reference, kind, path, sampling, fault
):
    servers = [await bench.simulate(kind), await bench.simulate(kind)]
    face = await bench.proxy(*servers)
    for server in servers:
        setattr(server.faults, fault, 6)
        server.faults.count = 1
    asked = {**ASKED[path], **sampling, "max_tokens": 30, "stream_options": {"include_usage": True}}
    answer = await face.stream(path, asked)
    assert (answer.status, answer.whole, answer.done) == (200, True, True)
    assert answer.text == await expected(path, asked)
    assert answer.reasons == ["length"]
    assert len(answer.ids) == 1
    assert answer.roles == (["assistant"] if path == CHAT else [])
    usage = answer.usage
    assert usage is not None and usage["completion_tokens"] == 30
    assert usage["total_tokens"] == usage["prompt_tokens"] + 30
    direct = await face.post(path, {**asked, "stream": False, "stream_options": None})
    assert usage["prompt_tokens"] == direct.json()["usage"]["prompt_tokens"]
    assert face.proxy.router.counts.resumes == 2
    assert [backend.resumed for backend in face.proxy.registry] == [1, 1]


async def test_kinds_take_over_from_each_other(bench: Bench, expected: Reference):
    kinds = ["vllm", "sglang", "llamacpp"]
    face = await bench.proxy(*[await bench.simulate(kind) for kind in kinds])
    for server in bench.servers:
        server.faults.reset, server.faults.count = 4, 1
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 20})
    assert answer.done and answer.whole
    assert answer.text == await expected(CHAT, {**CHATS, "max_tokens": 20})


async def test_a_limit_under_its_new_name_holds(bench: Bench, expected: Reference):
    face = await bench.proxy(await bench.simulate(), await bench.simulate())
    for server in bench.servers:
        server.faults.reset, server.faults.count = 4, 1
    answer = await face.stream(CHAT, {**CHATS, "max_completion_tokens": 9})
    assert answer.text == await expected(CHAT, {**CHATS, "max_tokens": 9})
    assert answer.reasons == ["length"]


async def test_a_process_is_killed(bench: Bench, expected: Reference):
    servers = [
        SimulatedServer("vllm", bench.folder, "--itl-base-ms", "20", "--prefill-rate", "100000")
        for _ in range(2)
    ]
    try:
        for server in servers:
            await asyncio.to_thread(server.wait_serving)
        face = await bench.proxy(*servers)
        asked = {**CHATS, "max_tokens": 100}
        streams = [asyncio.create_task(face.stream(CHAT, asked)) for _ in range(8)]
        one = face.backend(servers[0])
        await eventually(lambda: one.in_flight >= 2)
        await eventually(lambda: all(other.in_flight for other in face.proxy.registry))
        await asyncio.to_thread(servers[0].kill)
        text = await expected(CHAT, asked)
        for answer in await asyncio.gather(*streams):
            assert answer.done and answer.text == text and answer.reasons == ["length"]
        assert not one.ready
    finally:
        for server in servers:
            server.stop()


def event(text: str, **choice: object) -> bytes:
    """A chat chunk as a simulated server would send it."""
    said = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": None, **choice}
    return b"data: %b\n\n" % orjson.dumps({"id": "first", "object": "x", "model": "m", "choices": [said]})


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ROLE = event("", delta={"role": "assistant", "content": ""})


async def words(expected: Reference, count: int) -> list[str]:
    text = await expected(CHAT, {**CHATS, "max_tokens": count})
    return [text[begin : begin + 4] for begin in range(0, len(text), 4)]


async def resumed(bench: Bench, *pieces: bytes, **asked: object):
    """The answer to a stream that a scripted backend begins with `pieces`, then resets."""

    async def lose(call: Call) -> None:
        await call.send(SSE_HEAD)
        for piece in pieces:
            await call.send(piece)
            await asyncio.sleep(0.01)
        await call.send(b"")
        call.reset()

    scripted = await bench.script(lose)
    face = await bench.proxy(backends=f"{url(scripted)}?alias=*:scripted")
    healthy = await bench.simulate(itl_base_ms=2.0)
    face.proxy.registry.add(BackendSpec(url(healthy), priority=1))
    await face.ready(2)
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 4, **asked})
    return answer, healthy


async def test_a_loss_before_the_first_event_keeps_the_role(bench: Bench, expected: Reference):
    answer, _ = await resumed(bench)
    assert (answer.roles, answer.reasons, answer.done) == (["assistant"], ["length"], True)
    assert answer.text == "".join(await words(expected, 4))
    assert len(answer.ids) == 1


async def test_a_loss_behind_the_role_says_it_once(bench: Bench, expected: Reference):
    answer, _ = await resumed(bench, chunk(ROLE))
    assert (answer.roles, answer.ids, answer.done) == (["assistant"], {"first"}, True)
    assert answer.text == "".join(await words(expected, 4))


async def test_half_an_event_is_not_passed_on(bench: Bench, expected: Reference):
    said = await words(expected, 4)
    second = event(said[1])
    answer, _ = await resumed(bench, chunk(ROLE + event(said[0]) + second[:25]), chunk(second[25:50]))
    assert answer.text == "".join(said)
    assert answer.done


async def test_events_in_pieces_are_put_together(bench: Bench, expected: Reference):
    said = await words(expected, 4)
    stream = ROLE + event(said[0]) + event(said[1])
    answer, _ = await resumed(bench, *[chunk(stream[at : at + 7]) for at in range(0, len(stream), 7)])
    assert answer.text == "".join(said)


async def test_line_ends_of_windows_and_comments(bench: Bench, expected: Reference):
    said = await words(expected, 4)
    windows = [one.replace(b"\n", b"\r\n") for one in (ROLE, event(said[0]), event(said[1]))]
    ping, retry = b": ping\r\n\r\n", b"retry: 5\r\n\r\n"
    answer, _ = await resumed(bench, *map(chunk, [ping, *windows, retry]))
    assert answer.text == "".join(said)
    assert answer.done and answer.body.startswith(ping)


async def test_only_the_end_is_missing(bench: Bench, expected: Reference):
    said = await words(expected, 4)
    answer, healthy = await resumed(bench, chunk(ROLE + b"".join(map(event, said))))
    assert (answer.text, answer.reasons, answer.done) == ("".join(said), ["length"], True)
    assert answer.ids == {"first"}
    assert healthy.engine.totals.completed == 0, "nobody had to be asked"


async def test_only_done_is_missing(bench: Bench):
    answer, healthy = await resumed(bench, chunk(ROLE + event(" one") + event("", finish_reason="stop")))
    assert (answer.text, answer.reasons, answer.done) == (" one", ["stop"], True)
    assert healthy.engine.totals.completed == 0


async def test_only_the_bodys_end_is_missing(bench: Bench):
    rest = event("", finish_reason="stop") + b"data: [DONE]\n\n"
    answer, healthy = await resumed(bench, chunk(ROLE + event(" one") + rest))
    assert (answer.text, answer.reasons, answer.done, answer.whole) == (" one", ["stop"], True, True)
    assert healthy.engine.totals.completed == 0


@pytest.mark.parametrize("told", [True, False], ids=["reason", "no reason"])
async def test_only_usage_is_missing(bench: Bench, expected: Reference, told):
    said = await words(expected, 4)
    rest = event("", finish_reason="length") if told else b""
    answer, _ = await resumed(
        bench, chunk(ROLE + b"".join(map(event, said)) + rest), stream_options={"include_usage": True}
    )
    assert (answer.text, answer.reasons, answer.done) == ("".join(said), ["length"], True)
    assert answer.usage is not None and answer.usage["completion_tokens"] == 4
    assert answer.usage["total_tokens"] == answer.usage["prompt_tokens"] + 4
    assert answer.ids == {"first"}


async def test_usage_is_missing_behind_an_early_stop(bench: Bench):
    pieces = ROLE + event(" one") + event("", finish_reason="stop")
    answer, _ = await resumed(bench, chunk(pieces), stream_options={"include_usage": True}, max_tokens=50)
    assert (answer.text, answer.reasons, answer.done) == (" one", ["stop"], True)
    assert answer.usage is not None and answer.usage["completion_tokens"] == 1


async def test_a_stream_waits_for_a_backend_to_return(bench: Bench, expected: Reference):
    server = await bench.simulate(itl_base_ms=3.0)
    face = await bench.proxy(server)
    asked = {**CHATS, "max_tokens": 60}
    stream = asyncio.create_task(face.stream(CHAT, asked))
    await eventually(lambda: server.engine.totals.generated_tokens > 5)
    server.stop()
    await eventually(lambda: not face.backend(server).ready)
    await bench.simulate(port=server.port)
    answer = await stream
    assert answer.done and answer.text == await expected(CHAT, asked)


async def test_nobody_returns(bench: Bench):
    server = await bench.simulate(itl_base_ms=3.0)
    face = await bench.proxy(server, resume_wait_s=0.1)
    stream = asyncio.create_task(face.stream(CHAT, {**CHATS, "max_tokens": 100}))
    await eventually(lambda: server.engine.totals.generated_tokens > 5)
    server.stop()
    answer = await stream
    assert not answer.done and not answer.whole
    assert answer.error is not None and answer.error["code"] == "stream_interrupted"


@pytest.mark.parametrize("limit", [0, 2])
async def test_too_many_losses_are_enough(bench: Bench, limit):
    face = await bench.proxy(await bench.simulate(), await bench.simulate(), max_resumes=limit)
    for server in bench.servers[:2]:
        server.faults.reset = 4
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 100})
    assert not answer.done and not answer.whole and answer.error is not None
    assert len(answer.text) == 16 * (limit + 1)
    assert face.proxy.router.counts.resumes == limit
    assert face.proxy.router.counts.crash_loops == (limit > 0), "one loss may have any cause"


async def test_a_drained_backend_hands_its_streams_over(bench: Bench, expected: Reference):
    slow, quick = await bench.simulate(itl_base_ms=5.0), await bench.simulate()
    face = await bench.proxy(slow, ready=1, max_resumes=0)
    asked = {**CHATS, "max_tokens": 200}
    stream = asyncio.create_task(face.stream(CHAT, asked))
    await eventually(lambda: slow.engine.totals.generated_tokens > 5)
    face.proxy.registry.add(BackendSpec(url(quick)))
    await face.ready(2)
    assert await face.proxy.registry.drain(face.backend(slow), 0.05) == 1
    answer = await stream
    assert answer.done and answer.text == await expected(CHAT, asked)
    assert slow.engine.running == 0
    assert face.backend(slow).failed == 0


async def test_a_removed_backend_hands_its_streams_over(bench: Bench, expected: Reference):
    slow, quick = await bench.simulate(itl_base_ms=5.0), await bench.simulate()
    face = await bench.proxy(slow)
    asked = {**CHATS, "max_tokens": 200}
    stream = asyncio.create_task(face.stream(CHAT, asked))
    await eventually(lambda: slow.engine.totals.generated_tokens > 5)
    face.proxy.registry.add(BackendSpec(url(quick)))
    await face.ready(2)
    await face.proxy.registry.remove(url(slow))
    answer = await stream
    assert answer.done and answer.text == await expected(CHAT, asked)


async def test_a_request_without_an_answer_leaves_a_removed_backend(bench: Bench):
    frozen, quick = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(frozen)
    frozen.faults.stall = 0
    ask = asyncio.create_task(face.post(CHAT, {**CHATS, "max_tokens": 5}))
    await eventually(lambda: face.backend(frozen).in_flight == 1)
    face.proxy.registry.add(BackendSpec(url(quick)))
    await face.ready(2)
    await face.proxy.registry.remove(url(frozen))
    answer = await ask
    assert answer.status_code == 200 and answer.headers["x-rhizome-attempts"] == "2"


async def test_a_backend_that_falls_silent_is_left(bench: Bench, expected: Reference):
    stuck, quick = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(stuck, idle_timeout_s=0.3)
    stuck.faults.stall = 5
    stream = asyncio.create_task(face.stream(CHAT, {**CHATS, "max_tokens": 30}))
    await eventually(lambda: face.backend(stuck).in_flight == 1)
    face.proxy.registry.add(BackendSpec(url(quick)))
    answer = await stream
    assert answer.done and answer.text == await expected(CHAT, {**CHATS, "max_tokens": 30})
    assert stuck.engine.running == 0, "the connection was closed"


async def test_nobody_goes_on_with_another_model(bench: Bench):
    """A server that ignores models' names would say something, but not what the first one would have said."""
    one = await bench.simulate(model="one", itl_base_ms=3.0)
    other = await bench.simulate("llamacpp", model="other")
    face = await bench.proxy(one, other, resume_wait_s=0.2)
    stream = asyncio.create_task(face.stream(CHAT, {**CHATS, "model": "one", "max_tokens": 500}))
    await eventually(lambda: one.engine.totals.generated_tokens > 5)
    one.stop()
    answer = await stream
    assert not answer.done and answer.error is not None
    assert face.proxy.router.counts.resumes == 0
    assert (await face.post(CHAT, {**CHATS, "model": "one"})).status_code == 503
    assert other.engine.totals.generated_tokens == 0


async def test_a_client_leaves_while_its_stream_waits_for_a_backend(bench: Bench):
    server = await bench.simulate(itl_base_ms=3.0)
    face = await bench.proxy(server, resume_wait_s=30.0)
    peer = await face.begin(CHAT, {**CHATS, "stream": True, "max_tokens": 500})
    await peer.reader.readuntil(b"assistant")
    server.stop()
    await eventually(lambda: face.backend(server).in_flight == 0)
    assert face.proxy.router.http.open == 1
    peer.writer.close()
    await eventually(lambda: face.proxy.router.http.open == 0)


async def test_a_resumption_that_is_refused_does_not_hammer(bench: Bench):
    """Backends that are full are asked again in moments, not in a loop."""
    server = await bench.simulate(itl_base_ms=3.0)
    face = await bench.proxy(server, resume_wait_s=0.5)
    asks = 0

    async def begin_then_refuse(call: Call) -> None:
        nonlocal asks
        asks += 1
        if asks > 1:
            await call.send(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno")
            return
        await call.send(SSE_HEAD + chunk(ROLE + event(" one")))
        call.reset()

    scripted = await bench.script(begin_then_refuse)
    await face.proxy.registry.remove(url(server))
    face.proxy.registry.add(BackendSpec(url(scripted)))
    await face.ready(1)
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 9})
    assert not answer.done and answer.error is not None
    assert 2 <= asks <= 15


async def test_a_resumption_that_is_wrong_is_not_tried_again(bench: Bench):
    asks = 0

    async def begin_then_refuse(call: Call) -> None:
        nonlocal asks
        asks += 1
        if asks > 1:
            await call.send(b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\nno")
            return
        await call.send(SSE_HEAD + chunk(ROLE + event(" one")))
        call.reset()

    face = await bench.proxy(await bench.script(begin_then_refuse))
    answer = await face.stream(CHAT, {**CHATS, "max_tokens": 9})
    assert not answer.done and answer.error is not None
    assert asks == 2
