"""Streams with a continuation, at the level of the relay: a queue, a loss, and what the client sees."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from tests.relay.conftest import OK, SSE_HEAD, Bed, Call, Peer, eventually, post

from rhizome_relay.errors import HttpError
from rhizome_relay.picker import Ending, Target
from rhizome_relay.request import RelayRequest

ASK = post(b'{"stream": true}')
COMMENT = b": waiting for a backend\n\n"
DONE = b"data: [DONE]\n\n"


class Letters:
    """A stream of single letters, which goes on behind those that the client has."""

    def __init__(self, bed: Bed, request: RelayRequest) -> None:
        self.possible = True
        self.got = b""
        self.ended = False
        self._bed = bed
        self._request = request

    def take(self, data: bytes, ended: bool) -> bytes:
        self.got += data
        return data

    def end(self) -> bytes | None:
        return b"" if DONE in self.got else None

    def next_target(self) -> Target | None:
        return self._bed.following.pop(0) if self._bed.following else None

    def body(self, target: Target) -> bytes:
        return b"%d" % self.got.count(b"data: ")


@pytest.fixture
async def queueing(bed: Any) -> Any:
    """Starts a proxy whose picker waits for `gate`, and whose streams go on at `following`."""

    async def start(*scripts: Any, **settings: Any) -> Bed:
        running: Bed = await bed(*scripts, **{"comment_s": 0.02, "resume_wait_s": 0.2, **settings})
        running.gate = asyncio.get_running_loop().create_future()
        running.following = []
        running.continuations = []

        def continuation(request: RelayRequest) -> Letters:
            running.continuations.append(Letters(running, request))
            return running.continuations[-1]

        async def choose(request: RelayRequest) -> Iterable[Target]:
            chosen: Iterable[Target] = await asyncio.shield(running.gate)
            return chosen

        running.picker.continuation = continuation
        running.picker.choose = choose
        return running

    return start


def letter(text: bytes) -> bytes:
    return b"data: %b\n\n" % text


def letters(*texts: bytes, lose: bool = False) -> Any:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD)
        for text in texts:
            await call.event(letter(text))
        if lose:
            call.reset()
        else:
            await call.event(DONE)
            await call.send(b"0\r\n\r\n")

    return script


async def waiting(peer: Peer, comments: int = 2) -> None:
    for _ in range(comments):
        await asyncio.wait_for(peer.reader.readuntil(COMMENT), 10)


async def rest(peer: Peer) -> bytes:
    """What comes until the end of the body, without its framing; whole."""
    got = b""
    while not got.endswith(b"0\r\n\r\n"):
        part = await asyncio.wait_for(peer.reader.read(65536), 10)
        assert part, got
        got += part
    lines = got.removeprefix(b"\r\n").split(b"\r\n")
    return b"".join(lines[1::2])


async def test_a_client_hears_comments_and_then_the_answer(queueing: Any) -> None:
    running = await queueing(letters(b"a", b"b"))
    peer = await running.peer()
    await peer.send(ASK)
    head = await asyncio.wait_for(peer.reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"content-type: text/event-stream" in head and b"x-accel-buffering: no" in head
    await waiting(peer)
    running.gate.set_result(running.targets)
    body = await rest(peer)
    assert body.replace(COMMENT, b"") == letter(b"a") + letter(b"b") + DONE
    (result,) = running.picker.results
    assert (result.status, result.whole, result.attempts) == (200, True, 1)
    assert result.queue_s > 0 and result.first_byte_s >= result.queue_s
    running.backend.script = lambda call: call.send(OK)
    running.picker.choose = None
    assert (await peer.ask(post(b"{}"))).body == b"ok", "the connection is as good as before"


async def test_without_a_wait_there_are_no_comments(queueing: Any) -> None:
    running = await queueing(letters(b"a"))
    running.gate.set_result(running.targets)
    response = await running.ask(ASK)
    assert response.body == letter(b"a") + DONE
    assert response.values(b"x-rhizome-backend") == [b"b0"]


@pytest.mark.parametrize("status", [429, 503, 500])
async def test_a_refusal_of_the_queue_is_an_event(queueing: Any, status: int) -> None:
    running = await queueing()
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer)
    running.gate.set_exception(HttpError(status, "full", "It is full."))
    body = await rest(peer)
    assert body.endswith(DONE)
    event = body.replace(COMMENT, b"").removesuffix(DONE)
    assert orjson.loads(event.removeprefix(b"data: "))["error"]["code"] == "full"
    assert [(one.status, one.whole, one.attempts) for one in running.picker.results] == [(status, True, 0)]


async def test_a_refusal_before_the_first_comment_is_a_status(queueing: Any) -> None:
    running = await queueing(comment_s=30.0)
    running.gate.set_exception(HttpError(429, "full", "It is full."))
    assert (await running.ask(ASK)).status == 429


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b'{"error": {"message": "too long",\n "code": "bad"}}', "bad"),
        (b"<html>what?</html>", "backend_lost"),
        (b'{"error": "' + b"x" * 50_000 + b'"}', "backend_lost"),
        (b"", "backend_lost"),
    ],
    ids=["JSON", "HTML", "endless", "nothing"],
)
async def test_a_refusal_of_the_backend_is_an_event(queueing: Any, said: bytes, told: str) -> None:
    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

    running = await queueing(refuse)
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer)
    running.gate.set_result(running.targets)
    body = await rest(peer)
    event = body.replace(COMMENT, b"").removesuffix(DONE)
    assert orjson.loads(event.removeprefix(b"data: "))["error"]["code"] == told
    assert [target.endings for target in running.targets] == [[Ending.COMPLETE]]
    assert [result.status for result in running.picker.results] == [400]


async def test_a_refusal_goes_to_the_next_backend(queueing: Any) -> None:
    async def refuse(call: Call) -> None:
        await call.send(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")

    running = await queueing(refuse, letters(b"a"))
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer)
    running.gate.set_result(running.targets)
    assert (await rest(peer)).replace(COMMENT, b"") == letter(b"a") + DONE
    assert [target.endings for target in running.targets] == [[Ending.REFUSED], [Ending.COMPLETE]]


async def test_backends_that_are_lost_behind_comments_are_an_event(queueing: Any) -> None:
    async def lose(call: Call) -> None:
        call.reset()

    running = await queueing(lose, lose)
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer)
    running.gate.set_result(running.targets)
    body = await rest(peer)
    assert b"backend_lost" in body and body.endswith(DONE)
    assert [target.endings for target in running.targets] == [[Ending.LOST], [Ending.LOST]]


@pytest.mark.parametrize("comments", [0, 2])
async def test_a_client_that_leaves_the_queue_is_forgotten(queueing: Any, comments: int) -> None:
    running = await queueing()
    cancelled = []

    async def choose(request: RelayRequest) -> Iterable[Target]:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(request)
            raise
        return []

    running.picker.choose = choose
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer, comments)
    await eventually(lambda: len(running.continuations) == 1)
    peer.writer.transport.abort()
    await eventually(lambda: len(cancelled) == 1)
    await eventually(lambda: len(running.picker.results) == 1)
    assert not running.picker.results[0].whole and running.backend.received == []


async def test_a_client_of_old_http_hears_nothing_until_the_answer(queueing: Any) -> None:
    running = await queueing(letters(b"a"))
    peer = await running.peer()
    await peer.send(ASK.replace(b"HTTP/1.1", b"HTTP/1.0"))
    await asyncio.sleep(0.1)
    running.gate.set_result(running.targets)
    got = await asyncio.wait_for(peer.reader.read(), 10)
    assert COMMENT not in got and got.endswith(letter(b"a") + DONE)


async def test_a_cut_behind_comments_goes_to_the_next_backend(queueing: Any) -> None:
    async def hold(call: Call) -> None:
        await call.until_closed()

    running = await queueing(hold, letters(b"a"))
    cuts: list[Any] = []
    lease = running.targets[0].lease
    running.targets[0].lease = lambda cut, heard_at: (cuts.append(cut), lease(cut, heard_at))[1]
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer)
    running.gate.set_result(running.targets)
    await eventually(lambda: len(running.backend.received) == 1)
    cuts[0]()
    assert (await rest(peer)).replace(COMMENT, b"") == letter(b"a") + DONE


async def test_early_hints_do_not_break_into_a_stream(queueing: Any) -> None:
    async def hint(call: Call) -> None:
        await call.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        await letters(b"a")(call)

    running = await queueing(hint)
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer)
    running.gate.set_result(running.targets)
    body = await rest(peer)
    assert body.replace(COMMENT, b"") == letter(b"a") + DONE


async def test_another_backend_goes_on(queueing: Any) -> None:
    running = await queueing(letters(b"a", b"b", lose=True), letters(b"c"))
    running.gate.set_result(running.targets[:1])
    running.following = [running.targets[1]]
    response = await running.ask(ASK)
    assert response.body == b"".join(map(letter, (b"a", b"b", b"c"))) + DONE
    assert running.backends[1].received[0].body == b"2"
    assert [target.endings for target in running.targets] == [[Ending.TRUNCATED], [Ending.COMPLETE]]
    (result,) = running.picker.results
    assert (result.whole, result.attempts, result.backend) == (True, 2, "b1")


async def test_unreachable_backends_cost_no_loss(queueing: Any) -> None:
    running = await queueing(letters(b"a", lose=True), letters(), letters(b"b"), max_resumes=1)
    await running.backends[1].stop()
    running.gate.set_result(running.targets[:1])
    running.following = [running.targets[1], running.targets[1], running.targets[2]]
    assert (await running.ask(ASK)).body == letter(b"a") + letter(b"b") + DONE
    assert running.targets[1].endings == [Ending.UNREACHABLE] * 2


async def test_an_idle_connection_that_was_closed_is_no_loss(queueing: Any) -> None:
    async def once(call: Call) -> None:
        await call.send(OK)

    running = await queueing(letters(b"a", lose=True), once, max_resumes=1)
    running.gate.set_result(running.targets[1:])
    assert (await running.ask(ASK)).body == b"ok"
    running.gate = asyncio.get_running_loop().create_future()
    running.gate.set_result(running.targets[:1])

    async def close_when_asked(call: Call) -> None:
        if len(running.backends[1].received) == 2:
            call.writer.close()
        else:
            await letters(b"b")(call)

    running.backends[1].script = close_when_asked
    running.following = [running.targets[1]]
    assert (await running.ask(ASK)).body == letter(b"a") + letter(b"b") + DONE
    assert running.targets[1].endings == [Ending.COMPLETE] * 2


async def test_who_leaves_with_a_kept_connection_does_not_end_a_stream(queueing: Any) -> None:
    running = await queueing(letters(b"a", lose=True), letters(), letters(b"b"), max_resumes=2)
    running.gate.set_result(running.targets[1:2])
    assert (await running.ask(ASK)).body == DONE

    async def leave(call: Call) -> None:
        running.backends[1].leave()
        call.reset()

    running.backends[1].script = leave
    running.gate = asyncio.get_running_loop().create_future()
    running.gate.set_result(running.targets[:1])
    running.following = running.targets[1:]
    assert (await running.ask(ASK)).body == letter(b"a") + letter(b"b") + DONE
    assert [target.endings[-1] for target in running.targets] == [
        Ending.TRUNCATED,
        Ending.LOST,
        Ending.COMPLETE,
    ]


async def test_who_is_lost_before_the_first_event_is_none_of_the_streams_losses(queueing: Any) -> None:
    async def hang_up(call: Call) -> None:
        call.reset()

    scripts = [hang_up] * 3 + [letters(b"a", lose=True), letters(b"b")]
    running = await queueing(*scripts, max_resumes=1)
    running.gate.set_result(running.targets[:-1])
    running.following = running.targets[-1:]
    assert (await running.ask(ASK)).body == letter(b"a") + letter(b"b") + DONE


async def test_nobody_to_go_on_is_seen(queueing: Any) -> None:
    running = await queueing(letters(b"a", lose=True))
    running.gate.set_result(running.targets)
    peer = await running.peer()
    await peer.send(ASK)
    got = await asyncio.wait_for(peer.reader.read(), 10)
    assert b"stream_interrupted" in got and DONE not in got and not got.endswith(b"0\r\n\r\n")
    assert [(one.status, one.whole) for one in running.picker.results] == [(200, False)]


async def test_a_picker_that_fails_is_seen(queueing: Any, caplog: Any) -> None:
    running = await queueing(letters(b"a", lose=True))
    running.gate.set_result(running.targets)

    class Broken(Letters):
        def next_target(self) -> Target | None:
            raise RuntimeError("a bug")

    running.picker.continuation = lambda request: Broken(running, request)
    peer = await running.peer()
    await peer.send(ASK)
    got = await asyncio.wait_for(peer.reader.read(), 10)
    assert DONE not in got and not got.endswith(b"0\r\n\r\n")
    assert "the request failed here" in caplog.text
    assert len(running.picker.results) == 1


async def test_the_total_time_holds_while_a_stream_waits(queueing: Any) -> None:
    running = await queueing(letters(b"a", lose=True), total_timeout_s=0.3, resume_wait_s=60.0)
    running.gate.set_result(running.targets)
    peer = await running.peer()
    await peer.send(ASK)
    got = await asyncio.wait_for(peer.reader.read(), 10)
    assert letter(b"a") in got and DONE not in got


async def test_the_total_time_holds_in_the_queue(queueing: Any) -> None:
    running = await queueing(total_timeout_s=0.3)
    peer = await running.peer()
    await peer.send(ASK)
    await waiting(peer)
    body = await rest(peer)
    assert b"backend_timeout" in body and body.endswith(DONE)
