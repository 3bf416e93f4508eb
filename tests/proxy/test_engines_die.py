"""Engines that die and come back under load: what every request may rely on."""

from __future__ import annotations

import asyncio
import random

import grpc

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_CANCELLED, FINISH_REASON_LENGTH
from rhizome_transport.errors import EngineError

REQUESTS, ENGINES, TOKENS = 240, 3, 6


async def test_every_request_ends_once_and_no_token_is_lost(cluster, script, eventually):
    dice = random.Random(7)
    dying: list[object] = []  # says a token of each answer, and no more
    over = asyncio.Event()

    async def speak(peer, submit):
        request_id = submit.request.request_id
        await asyncio.sleep(dice.random() * 0.02)
        if dice.random() < 0.1:
            await peer.send(script.refused(request_id, script.full))
            return
        await peer.send(script.started(request_id))
        for token in range(submit.request.resumed_tokens, TOKENS):
            await asyncio.sleep(dice.random() * 0.004)
            if request_id in peer.engine.cancels:
                return
            await peer.send(script.delta(request_id, token))
            if peer.engine in dying:
                await over.wait()
        await peer.send(script.finished(request_id))

    engines = [await cluster.engine(speak) for _ in range(ENGINES)]
    steady = await cluster.engine(speak)
    proxy = await cluster.proxy(*engines, steady, max_resumes=50, retry_share=1.0)
    peers = [await cluster.peer(proxy) for _ in range(3)]

    async def kill_and_revive() -> None:
        while True:
            engine = dice.choice(engines)
            if dice.random() < 0.7:  # else it dies wherever it is
                dying.append(engine)
                await asyncio.sleep(0.03)
            await engine.kill()
            dying.clear()
            await asyncio.sleep(0.05)
            await engine.start()
            await asyncio.sleep(0.02)

    killer = asyncio.create_task(kill_and_revive())
    cancelled = set()
    for number in range(REQUESTS):
        peer, request_id = peers[number % len(peers)], f"r{number}"
        await peer.submit(request_id)
        if dice.random() < 0.1:
            await peer.cancel(request_id)
            cancelled.add(request_id)
        await asyncio.sleep(0.005)
    for number in range(REQUESTS):
        await peers[number % len(peers)].outcome(f"r{number}")
    killer.cancel()
    await asyncio.gather(killer, return_exceptions=True)
    over.set()

    whole = 0
    for number in range(REQUESTS):
        peer, request_id = peers[number % len(peers)], f"r{number}"
        events = peer.events(request_id)
        assert [event.final for event in events] == [False] * (len(events) - 1) + [True], request_id
        assert peer.tokens(request_id) == tuple(range(len(peer.tokens(request_id))))
        final = events[-1]
        if final.HasField("status"):
            error = EngineError.from_status(final.status)
            assert (len(events), error.code) == (1, grpc.StatusCode.RESOURCE_EXHAUSTED), (request_id, error)
        elif request_id in cancelled:
            assert final.response.finished.reason in (FINISH_REASON_CANCELLED, FINISH_REASON_LENGTH)
        else:
            assert len(peer.tokens(request_id)) == TOKENS
            whole += 1
    assert whole > REQUESTS // 2
    assert proxy.router.counts.resumes > 0, "the engines died too gently for this test to mean anything"
    await eventually(lambda: all(backend.in_flight == 0 for backend in proxy.registry))
