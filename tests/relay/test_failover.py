"""Another backend gets a request while its client has not had a byte."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.relay.conftest import GET, OK, SSE_HEAD, Call, eventually, post, say_ok

from rhizome_relay.errors import HttpError
from rhizome_relay.picker import Ending


def refusing(status: int, *headers: bytes) -> Any:
    async def script(call: Call) -> None:
        lines = b"".join(header + b"\r\n" for header in headers)
        await call.send(b"HTTP/1.1 %d No\r\n%bContent-Length: 2\r\n\r\nno" % (status, lines))

    return script


async def hang_up(call: Call) -> None:
    call.reset()


async def say_half_a_head(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Le")
    call.reset()


async def test_unreachable_backends_are_skipped_without_limit(bed: Any) -> None:
    running = await bed(say_ok, say_ok, say_ok, say_ok, say_ok, retries=0)
    for backend in running.backends[:4]:
        await backend.stop()
    response = await running.ask(post(b"{}"))
    assert (response.status, response.values(b"x-rhizome-attempts")) == (200, [b"5"])
    assert response.values(b"x-rhizome-backend") == [b"b4"]
    assert [target.endings for target in running.targets] == [[Ending.UNREACHABLE]] * 4 + [[Ending.COMPLETE]]


async def test_when_none_can_be_reached_the_client_may_try_later(bed: Any) -> None:
    running = await bed(say_ok)
    await running.backend.stop()
    response = await running.ask(post(b"{}"))
    assert response.status == 503
    assert response.values(b"retry-after") == [b"1"]
    assert response.values(b"x-rhizome-attempts") == [b"1"]


@pytest.mark.parametrize("script", [hang_up, say_half_a_head, *map(refusing, (429, 502, 503))])
async def test_a_backend_that_fails_before_the_response_is_left(bed: Any, script: Any) -> None:
    running = await bed(script, say_ok)
    response = await running.ask(post(b'{"n": 1}'))
    assert (response.status, response.body) == (200, b"ok")
    assert running.backends[1].received[0].body == b'{"n": 1}'
    assert len(running.targets[0].outcomes) == len(running.targets[1].outcomes) == 1


@pytest.mark.parametrize("status", [400, 404, 500, 504])
async def test_other_errors_are_the_clients(bed: Any, status: int) -> None:
    running = await bed(refusing(status), say_ok)
    response = await running.ask(post(b"{}"))
    assert (response.status, response.body) == (status, b"no")
    assert not running.backends[1].received


async def test_the_last_refusal_is_passed_on_as_it_is(bed: Any) -> None:
    running = await bed(refusing(503), refusing(429, b"Retry-After: 7"))
    response = await running.ask(post(b"{}"))
    assert (response.status, response.body) == (429, b"no")
    assert response.values(b"retry-after") == [b"7"]
    assert [target.endings for target in running.targets] == [[Ending.REFUSED]] * 2
    assert running.targets[1].outcomes[0].retry_after_s == 7


async def test_a_refusal_counts_more_than_backends_out_of_reach(bed: Any) -> None:
    running = await bed(refusing(429, b"Retry-After: 7"), say_ok)
    await running.backends[1].stop()
    response = await running.ask(post(b"{}"))
    assert response.status == 429
    assert response.values(b"retry-after") == [b"7"]


async def test_a_date_in_retry_after_is_understood(bed: Any) -> None:
    running = await bed(refusing(503, b"Retry-After: Wed, 21 Oct 2099 07:28:00 GMT"))
    await running.ask(post(b"{}"))
    assert running.targets[0].outcomes[0].retry_after_s > 1e9


async def test_refusals_have_a_limit(bed: Any) -> None:
    running = await bed(*[refusing(503)] * 3, say_ok, max_attempts=3)
    response = await running.ask(post(b"{}"))
    assert (response.status, response.values(b"x-rhizome-attempts")) == (503, [b"3"])


@pytest.mark.parametrize(("max_resumes", "losses"), [(0, 3), (3, 3), (5, 5)])
async def test_losses_have_a_limit_of_their_own(bed: Any, max_resumes: int, losses: int) -> None:
    settings = {"retries": 0, "max_attempts": 1, "max_resumes": max_resumes}
    running = await bed(*[hang_up] * losses, say_ok, **settings)
    response = await running.ask(post(b"{}"))
    assert (response.status, response.values(b"x-rhizome-attempts")) == (200, [b"%d" % (losses + 1)])
    running = await bed(*[hang_up] * (losses + 1), say_ok, **settings)
    response = await running.ask(post(b"{}"))
    assert (response.status, response.values(b"x-rhizome-attempts")) == (502, [b"%d" % (losses + 1)])
    assert not running.backends[-1].received, "the request may be what kills them"


async def test_who_dies_of_a_request_on_a_kept_connection_is_lost(bed: Any) -> None:
    """It looks as if the connection had been idle; that nobody listens any more says that it was not."""

    def dying(backend: Any) -> Any:
        async def die(call: Call) -> None:
            backend.leave()
            call.reset()

        return die

    running = await bed(*[say_ok] * 6, retries=0, max_resumes=3)
    peer = await running.peer()
    for target, backend in zip(running.targets, running.backends, strict=True):
        running.picker.choose = lambda request, target=target: iter([target])
        assert (await peer.ask(post(b"{}"))).status == 200
        backend.script = dying(backend)
    running.picker.choose = lambda request: iter(running.targets)
    assert (await peer.ask(post(b"{}"))).status == 502
    assert [len(backend.received) for backend in running.backends] == [2, 2, 2, 2, 1, 1]
    assert [target.endings[1:] for target in running.targets] == [[Ending.LOST]] * 4 + [[]] * 2


async def test_the_budget_bounds_retries(bed: Any) -> None:
    running = await bed(refusing(503), say_ok, retries=1)
    assert (await running.ask(post(b"{}"))).status == 200
    assert (await running.ask(post(b"{}"))).status == 503


async def test_nothing_is_tried_again_after_the_first_byte(bed: Any) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
        call.reset()

    running = await bed(script, say_ok)
    peer = await running.peer()
    await peer.send(post(b"{}"))
    with pytest.raises(Exception):  # noqa: B017 - whatever the parser says of half a response
        await peer.read("POST")
    assert not running.backends[1].received


async def test_a_body_that_was_passed_on_is_not_sent_again(bed: Any) -> None:
    running = await bed(hang_up, say_ok, replay_bytes=100)
    assert (await running.ask(post(b"x" * 1000))).status == 502
    assert not running.backends[1].received


async def test_a_long_body_finds_the_backend_that_can_be_reached(bed: Any) -> None:
    running = await bed(say_ok, say_ok, replay_bytes=100)
    await running.backend.stop()
    assert (await running.ask(post(b"x" * 1_000_000))).status == 200
    assert len(running.backends[1].received[0].body) == 1_000_000


async def test_a_silent_backend_is_given_up(bed: Any) -> None:
    async def silent(call: Call) -> None:
        await call.until_closed()

    running = await bed(silent, say_ok, first_byte_timeout_s=0.05)
    assert (await running.ask(post(b"{}"))).status == 504
    assert running.targets[0].endings == [Ending.TIMED_OUT]
    await eventually(lambda: running.backend.open == 0)


async def test_a_backend_that_falls_silent_is_given_up(bed: Any) -> None:
    async def stall(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
        await call.until_closed()

    running = await bed(stall, idle_timeout_s=0.05)
    peer = await running.peer()
    await peer.send(post(b"{}"))
    assert (await peer.reader.read()).endswith(b"hal")
    assert running.targets[0].endings == [Ending.TIMED_OUT]


async def test_events_put_the_deadline_off_and_silence_after_them_is_noticed(bed: Any) -> None:
    """The deadline does not follow each event: it is looked at when it has passed."""
    count, pause_s, idle_s = 40, 0.05, 1.5
    said_at = 0.0

    async def talk(call: Call) -> None:
        nonlocal said_at
        await call.send(SSE_HEAD)
        for number in range(count):
            said_at = time.monotonic()
            await call.event(b"data: %d\n\n" % number)
            await asyncio.sleep(pause_s)
        await call.until_closed()

    running = await bed(talk, idle_timeout_s=idle_s)
    peer = await running.peer()
    await peer.send(post(b"{}"))
    got = await asyncio.wait_for(peer.reader.read(), 20)
    told = got.split(b"\r\n\r\n", 1)[1]
    assert [b"data: %d\n\n" % number in told for number in range(count)] == [True] * count
    assert running.targets[0].endings == [Ending.TIMED_OUT]
    assert time.monotonic() - said_at >= idle_s - 0.01  # the loop counts milliseconds
    await eventually(lambda: running.backend.open == 0)


async def test_an_exchange_has_an_end(bed: Any) -> None:
    async def drip(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n")
        while True:
            await call.send(b"x")
            await asyncio.sleep(0.01)

    running = await bed(drip, total_timeout_s=0.5)
    peer = await running.peer()
    await peer.send(post(b"{}"))
    assert (await peer.reader.read()).endswith(b"x")


async def test_a_picker_may_refuse(bed: Any) -> None:
    running = await bed(say_ok)

    def refuse(request: Any) -> Any:
        raise HttpError(404, "model_not_found", "There is no such model.")

    async def refuse_later(request: Any) -> Any:
        refuse(request)

    def break_down(request: Any) -> Any:
        raise ValueError("a bug")

    def break_down_later(request: Any) -> Any:
        yield running.targets[0]
        raise ValueError("a bug")

    peer = await running.peer()
    for choose, status in ((refuse, 404), (refuse_later, 404), (break_down, 500)):
        running.picker.choose = choose
        assert (await peer.ask(post(b"{}"))).status == status
    running.picker.choose = break_down_later
    running.backend.script = hang_up
    assert (await peer.ask(post(b"{}"))).status == 502


async def test_a_broken_target_is_no_hanging_client(bed: Any) -> None:
    running = await bed(say_ok)

    def broken(request: Any) -> bytes:
        raise ValueError("a bug")

    running.targets[0].body = broken
    peer = await running.peer()
    for _ in range(2):
        assert (await peer.ask(post(b"{}"))).status == 500


async def test_the_next_target_is_only_asked_for_when_needed(bed: Any) -> None:
    running = await bed(say_ok, say_ok)
    asked: list[int] = []

    def choose(request: Any) -> Any:
        for index, target in enumerate(running.targets):
            asked.append(index)
            yield target

    running.picker.choose = choose
    await running.ask(post(b"{}"))
    assert asked == [0]


async def test_own_paths_are_answered_here(bed: Any) -> None:
    from rhizome_relay.answer import Answer

    running = await bed(say_ok)

    async def health(request: Any) -> Answer:
        return Answer(200, b'{"status":"ok"}', headers=((b"cache-control", b"no-store"),))

    running.local[b"/health"] = health
    peer = await running.peer()
    response = await peer.ask(GET.replace(b"/v1/x", b"/health?x"))
    assert (response.status, response.body) == (200, b'{"status":"ok"}')
    assert response.values(b"cache-control") == [b"no-store"]
    head = await peer.ask(b"HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n", "HEAD")
    assert head.values(b"content-length") == [b"15"]
    assert (await peer.ask(GET)).body == b"ok"
    assert OK.endswith(b"ok")
    assert len(running.backend.received) == 1
