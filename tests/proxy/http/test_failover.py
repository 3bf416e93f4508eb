"""Nothing is lost before its first byte, and only what is the backend's fault counts against it."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.proxy.http.conftest import CHAT, CHATS, Bench, url
from tests.relay.conftest import Call, eventually, say_ok

SHORT = {**CHATS, "max_tokens": 2}


async def test_a_dead_backend_costs_nobody_a_request(bench: Bench):
    dead, alive = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(dead, alive, poll_interval_s=30.0)
    dead.stop()
    answers = await asyncio.gather(*(face.post(CHAT, SHORT) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.headers["x-rhizome-backend"] for answer in answers} == {url(alive)}
    assert not face.backend(dead).ready, "passively: there was no check since"


async def test_a_process_that_dies_with_requests_costs_nobody_one(bench: Bench):
    dying, alive = await bench.simulate(itl_base_ms=10_000.0), await bench.simulate()
    face = await bench.proxy(dying, alive, policy="round_robin")
    asks = [asyncio.create_task(face.post(CHAT, SHORT)) for _ in range(10)]
    await eventually(lambda: dying.engine.running >= 2)
    dying.stop()
    assert {answer.status_code for answer in await asyncio.gather(*asks)} == {200}


async def test_an_answer_outlives_three_backends_of_three(bench: Bench):
    """As in a restart of the whole fleet, one after the other: who was lost first is back by then."""
    calls: list[Call] = []

    async def die_three_times(call: Call) -> None:
        if call.request.line.startswith(b"POST /v1/chat"):  # others ask who it is
            calls.append(call)
            if len(calls) <= 3:
                await face.ready(3)
                await call.send(b"HTTP/1.1 200")  # or it might be a connection that was idle for too long
                call.reset()
                return
        await say_ok(call)

    servers = [await bench.script(die_three_times) for _ in range(3)]
    face = await bench.proxy(*servers, retry_share=0, min_retries_per_s=1e-6)
    answer = await face.post(CHAT, SHORT)
    assert (answer.status_code, answer.headers["x-rhizome-attempts"]) == (200, "4")


@pytest.mark.parametrize("status", [429, 503])
async def test_a_full_backend_is_left_for_another(bench: Bench, status):
    full, free = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(backends=f"{url(full)}?priority=0,{url(free)}?priority=1")
    full.faults.status = status
    answer = await face.post(CHAT, SHORT)
    assert (answer.status_code, answer.headers["x-rhizome-attempts"]) == (200, "2")
    assert answer.headers["x-rhizome-backend"] == url(free)
    assert face.proxy.router.counts.retries == 1
    assert face.backend(full).ready, "full is not dead"
    assert face.backend(full).busy


async def test_when_all_are_full_the_client_hears_when_to_come_back(bench: Bench):
    async def refuse(call: Call) -> None:
        body = b'{"error": {"message": "full"}}'
        head = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n" % len(body)
        await call.send(head + body)

    face = await bench.proxy(await bench.script(refuse), await bench.script(refuse))
    answer = await face.post(CHAT, SHORT)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.headers["x-rhizome-attempts"] == "2"
    assert "error" in answer.json()
    assert all(one.ready and not one.outlier.ejected for one in face.proxy.registry)


async def test_when_all_are_down_the_client_hears_it_at_once(bench: Bench):
    face = await bench.proxy(await bench.simulate(), await bench.simulate())
    for server in bench.servers:
        server.stop()
    await face.ready(0)
    began = time.monotonic()
    for document in (SHORT, {**SHORT, "stream": True}):
        answer = await face.post(CHAT, document)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        error = answer.json()["error"]
        assert error["type"] == "server_error" and error["code"] == "backend_unavailable"
        assert "127.0.0.1" not in error["message"]
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_what_a_client_did_wrong_is_no_backends_fault(bench: Bench, status):
    face = await bench.proxy(await bench.simulate(), await bench.simulate())
    for server in bench.servers:
        server.faults.status = status
    for _ in range(8):
        answer = await face.post(CHAT, SHORT)
        assert (answer.status_code, answer.headers["x-rhizome-attempts"]) == (status, "1")
        assert answer.json()["error"]["message"] == "the simulated server fails", "in the backend's words"
    assert all(one.ready and not one.failed for one in face.proxy.registry)
    assert face.proxy.router.counts.retries == 0


async def test_retries_have_a_budget(bench: Bench):
    full, free = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(
        backends=f"{url(full)}?priority=0,{url(free)}?priority=1",
        retry_share=0.0,
        min_retries_per_s=1e-6,
        max_allowed_request_queue=None,
    )
    counts = face.proxy.router.counts
    full.faults.status = 500
    assert (await face.post(CHAT, SHORT)).status_code == 500, "that is an answer"
    full.faults.status = 503
    one = face.backend(full)
    statuses = []
    for _ in range(30):
        one._full_until = 0.0  # so that it comes first again
        statuses.append((await face.post(CHAT, SHORT)).status_code)
        if counts.retries_denied:
            break
    assert statuses[-1] == 503 and counts.retries_denied == 1
    assert counts.retries == statuses.count(200), "only those that went elsewhere are counted"


async def test_a_backend_that_fails_again_and_again_is_ejected_and_returns(bench: Bench):
    ill, well = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(backends=f"{url(ill)}?priority=0,{url(well)}?priority=1", eject_after=3)
    ill.faults.status = 500
    statuses = [(await face.post(CHAT, SHORT)).status_code for _ in range(6)]
    assert statuses == [500, 500, 500, 200, 200, 200]
    assert face.backend(ill).outlier.ejected and face.backend(ill).healthy
    health = (await face.client.get("/health")).json()
    assert url(ill) not in health["available_backends"]
    ill.faults.status = None
    deadline = time.monotonic() + 20
    while (await face.post(CHAT, SHORT)).headers["x-rhizome-backend"] != url(ill):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    assert not face.backend(ill).outlier.ejected


async def test_the_only_backend_of_a_model_gets_requests_though_it_is_ejected(bench: Bench):
    ill, other = await bench.simulate(model="one"), await bench.simulate(model="two")
    face = await bench.proxy(ill, other, eject_after=3)
    ill.faults.status = 500
    for _ in range(3):
        assert (await face.post(CHAT, {**SHORT, "model": "one"})).status_code == 500
    assert face.backend(ill).outlier.ejected
    ill.faults.status = None
    assert (await face.post(CHAT, {**SHORT, "model": "one"})).status_code == 200


async def test_one_good_answer_between_keeps_it(bench: Bench):
    server = await bench.simulate()
    face = await bench.proxy(server, await bench.simulate(), eject_after=3)
    face.backend(bench.servers[1]).drain()
    for status in (500, 500, None, 500, 500, None):
        server.faults.status = status
        assert (await face.post(CHAT, SHORT)).status_code == (status or 200)
    assert not face.backend(server).outlier.ejected


async def test_a_busy_backend_comes_last(bench: Bench):
    one, other = await bench.simulate(), await bench.simulate()
    listed = f"{url(one)}?priority=0,{url(other)}?priority=1"
    face = await bench.proxy(backends=listed, max_allowed_request_queue=1)
    one.faults.stall = other.faults.stall = 1
    backends = face.backend(one), face.backend(other)
    for _ in range(4):
        # A report asked for before a request went there takes it for somebody else's, until the next one.
        await eventually(lambda: all(backend.foreign_requests() == 0 for backend in backends))
        await (await face.begin(CHAT, {**CHATS, "stream": True})).reader.readuntil(b"content")
    counts = [backend.in_flight for backend in backends]
    assert counts == [2, 2], "the first one takes one more than it may, then the other one is less busy"
    for peer in face.peers:
        peer.writer.close()


async def test_a_queue_in_the_backend_makes_it_busy(bench: Bench, monkeypatch):
    monkeypatch.setenv("MAX_ALLOWED_DEFERRED", "0")
    one, other = await bench.simulate(max_running=1, itl_base_ms=50.0), await bench.simulate()
    listed = f"{url(one)}?priority=0,{url(other)}?priority=1"
    face = await bench.proxy(backends=listed)
    direct = [asyncio.create_task(face.client.post(url(one) + CHAT, json=CHATS)) for _ in range(3)]
    await eventually(lambda: face.backend(one).busy)
    answer = await face.post(CHAT, SHORT)
    assert answer.headers["x-rhizome-backend"] == url(other)
    for task in direct:
        task.cancel()
    await asyncio.gather(*direct, return_exceptions=True)


async def test_a_backend_without_an_answer_is_given_up_in_time(bench: Bench):
    server = await bench.simulate()
    face = await bench.proxy(server, first_byte_timeout_s=0.3)
    server.faults.stall = 0
    answer = await face.post(CHAT, SHORT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "backend_timeout")
    await eventually(lambda: server.engine.running == 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_backend(bench: Bench, stream):
    server = await bench.simulate(itl_base_ms=20.0)
    face = await bench.proxy(server)
    peer = await face.begin(CHAT, {**CHATS, "stream": stream, "max_tokens": 10_000})
    await eventually(lambda: server.engine.running == 1)
    peer.writer.close()
    await eventually(lambda: server.engine.running == 0)
    one = face.backend(server)
    await eventually(lambda: one.in_flight == 0)
    assert one.ready and not one.failed and not one.outlier.ejected


async def test_every_window_in_which_a_client_may_leave(bench: Bench):
    """Clients that leave at any moment leave nothing behind; the fixture looks."""
    servers = [await bench.simulate(itl_base_ms=2.0), await bench.simulate(itl_base_ms=2.0)]
    face = await bench.proxy(*servers)

    async def come_and_go(number: int) -> None:
        peer = await face.begin(CHAT, {**CHATS, "stream": number % 3 > 0, "max_tokens": 30})
        await asyncio.sleep(0.0007 * (number % 40))
        peer.writer.transport.abort() if number % 2 else peer.writer.close()

    for begin in range(0, 120, 20):
        for server in servers:
            server.faults.reset, server.faults.count = 5, 4
        await asyncio.gather(*map(come_and_go, range(begin, begin + 20)))
    await eventually(lambda: face.proxy.router.http.open == 0)
    await eventually(lambda: all(server.engine.running == 0 for server in servers))
    counted = sum(face.proxy.router.http.outcomes.values())
    assert counted == 120


async def test_a_proxy_starts_with_all_backends_down(bench: Bench):
    server = await bench.simulate()
    server.stop()
    face = await bench.proxy(server, ready=0, poll_timeout_s=0.2)
    assert (await face.post(CHAT, SHORT)).status_code == 503
    await bench.simulate(port=server.port)
    await face.ready(1)
    assert (await face.post(CHAT, SHORT)).status_code == 200


async def test_a_loop_is_found(bench: Bench):
    scripted = await bench.script(say_ok)
    face = await bench.proxy(scripted)
    await face.post(CHAT, SHORT)
    (asked,) = (one for one in scripted.received if one.line.startswith(b"POST"))  # others ask how it is
    via = asked.values(b"via")[0].decode()
    answer = await face.post(CHAT, SHORT, via=via)
    assert (answer.status_code, answer.json()["error"]["code"]) == (508, "loop_detected")
