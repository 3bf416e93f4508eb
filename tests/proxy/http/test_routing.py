"""Which backend an HTTP request goes to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from tests.backends.test_vllm_events import IDS, SIZE, Publisher, as_map, store
from tests.proxy.http.conftest import CHAT, CHATS, TEXT, Bench, url
from tests.relay.conftest import eventually, say_ok

SHORT = {**CHATS, "max_tokens": 2}


async def test_by_model(bench: Bench):
    servers = {name: await bench.simulate(model=name) for name in ("one", "two", "three")}
    face = await bench.proxy(*servers.values())
    for name in [*servers, *servers]:
        answer = await face.post(CHAT, {**SHORT, "model": name})
        assert answer.headers["x-rhizome-backend"] == url(servers[name])
        assert answer.json()["model"] == name


async def test_a_model_that_nobody_serves_is_refused_in_a_backends_words(bench: Bench):
    face = await bench.proxy(await bench.simulate(model="one"), await bench.simulate(model="two"))
    answer = await face.post(CHAT, {**SHORT, "model": "three"})
    assert answer.status_code == 404
    assert all(one.ready and not one.failed for one in face.proxy.registry), "that is no fault of its"
    assert face.proxy.router.counts.retries == 0


async def test_an_alias_is_rewritten(bench: Bench):
    small, large = await bench.simulate(model="small"), await bench.simulate(model="large")
    listed = f"{url(small)}?alias=cheap:small,{url(large)}?alias=best:large&alias=*:large"
    face = await bench.proxy(backends=listed)
    for name, server in [("cheap", small), ("best", large), ("small", small), ("gpt-4o", large)]:
        answer = await face.post(CHAT, {**SHORT, "model": name})
        assert (answer.status_code, answer.headers["x-rhizome-backend"]) == (200, url(server))


async def test_what_need_not_be_rewritten_keeps_its_bytes(bench: Bench):
    scripted = await bench.script(say_ok)
    face = await bench.proxy(backends=f"{url(scripted)}?alias=other:scripted")
    odd = b'{ "model":"scripted", "seed": 12345678901234567890123, "model" : "scripted" }'
    assert (await face.client.post(CHAT, content=odd)).status_code == 200
    sent = [one.body for one in scripted.received if one.body]
    assert sent == [odd]


async def test_lower_priorities_wait_for_the_higher_ones(bench: Bench):
    main, spare = await bench.simulate(), await bench.simulate()
    face = await bench.proxy(backends=f"{url(main)}?priority=0,{url(spare)}?priority=1")
    for _ in range(6):
        assert (await face.post(CHAT, SHORT)).headers["x-rhizome-backend"] == url(main)
    main.faults.unhealthy = True
    await face.ready(1)
    assert (await face.post(CHAT, SHORT)).headers["x-rhizome-backend"] == url(spare)
    main.faults.unhealthy = False
    await face.ready(2)
    assert (await face.post(CHAT, SHORT)).headers["x-rhizome-backend"] == url(main)


async def test_weights_share_requests(bench: Bench):
    light, heavy = [await bench.simulate("ollama", itl_base_ms=60_000.0) for _ in range(2)]
    listed = f"{url(light)}?weight=1,{url(heavy)}?weight=3"
    face = await bench.proxy(backends=listed, policy="least_loaded", slow_start_s=0)
    for number in range(24):
        await face.begin(TEXT, {"prompt": f"{number} is the number of this one"})
        await eventually(
            lambda opened=number + 1: sum(one.in_flight for one in face.proxy.registry) == opened
        )
    assert [face.backend(server).in_flight for server in (light, heavy)] == [6, 18]
    for peer in face.peers:
        peer.writer.close()


SESSIONS = {
    "header": ({}, {"x_session_id": "{}"}),
    "prompt_cache_key": ({"prompt_cache_key": "{}"}, {}),
    "user": ({"user": "{}"}, {}),
}


@pytest.mark.parametrize("field", SESSIONS)
async def test_sessions_stay(bench: Bench, field):
    # They report no load: a report may count a request that has just ended, and then the home seems full.
    face = await bench.proxy(*[await bench.simulate("ollama") for _ in range(3)], policy="session")
    fields, headers = SESSIONS[field]
    homes: dict[int, set[str]] = {}
    for turn in range(3):
        for session in range(12):
            document = {"prompt": f"turn {turn} of it", "max_tokens": 1}
            document |= {name: value.format(session) for name, value in fields.items()}
            named = {name: value.format(session) for name, value in headers.items()}
            answer = await face.post(TEXT, document, **named)
            homes.setdefault(session, set()).add(answer.headers["x-rhizome-backend"])
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) > 1, "not all in one place"


async def test_conversations_come_back_to_their_prefix(bench: Bench):
    face = await bench.proxy(*[await bench.simulate() for _ in range(4)], policy="cost")
    generator = np.random.default_rng(5)
    talks = [
        [{"role": "system", "content": " ".join(map(str, generator.integers(0, 10**6, 600)))}]
        for _ in range(8)
    ]
    homes: dict[int, set[str]] = {}
    for turn in range(4):
        for number, talk in enumerate(talks):
            talk.append({"role": "user", "content": f"And then, the {turn}. time?"})
            answer = await face.post(CHAT, {"messages": talk, "max_tokens": 3})
            talk.append(answer.json()["choices"][0]["message"])
            homes.setdefault(number, set()).add(answer.headers["x-rhizome-backend"])
    assert all(len(home) == 1 for home in homes.values())
    assert len(set.union(*homes.values())) > 1
    assert sum(server.engine.totals.cached_tokens for server in bench.servers) > 0


async def test_token_ids_follow_the_events_of_a_cache(bench: Bench):
    """vLLM says which blocks it holds: a prompt of token ids goes where they are, whoever got it before."""
    publisher = Publisher()
    servers = [await bench.simulate(block_size=SIZE) for _ in range(3)]
    holder = url(servers[1])
    listed = f"{url(servers[0])},{holder}?kind=vllm&events={publisher.endpoint},{url(servers[2])}"
    face = await bench.proxy(backends=listed)
    index = face.proxy.router.policy.index
    try:
        await publisher.wait_subscribed()
        await publisher.send(0, as_map(store(0, 6)))
        await eventually(lambda: bool(index.view(holder).held))
        for blocks in (6, 5, 4):
            answer = await face.post(TEXT, {"prompt": IDS[: blocks * SIZE].tolist(), "max_tokens": 1})
            assert answer.headers["x-rhizome-backend"] == holder
    finally:
        publisher.close()


async def test_what_has_no_prompt_goes_anywhere(bench: Bench):
    face = await bench.proxy(await bench.simulate())
    for path in ("/tokenize", "/v1/nothing"):
        assert (await face.client.get(path)).status_code in (400, 404, 405)
    assert (await face.client.post("/tokenize", json={"prompt": "a word"})).json()["count"] == 2


async def test_the_file_of_backends_is_read_again(bench: Bench, tmp_path: Path):
    one, other = await bench.simulate(itl_base_ms=5.0), await bench.simulate()
    file = tmp_path / "backends.yaml"
    file.write_text(f"- address: {url(one)}\n")
    face = await bench.proxy(backends_file=file, ready=1, engine_drain_timeout_s=60.0)
    stream = asyncio.create_task(face.stream(CHAT, {**CHATS, "max_tokens": 400}))
    await eventually(lambda: one.engine.running == 1)
    file.write_text(f"backends:\n- {{address: '{url(other)}', name: other, weight: 2}}\n")
    await eventually(lambda: face.proxy.registry.get("other") is not None)
    await eventually(lambda: face.proxy.registry.get("other").ready)
    assert (await face.post(CHAT, SHORT)).headers["x-rhizome-backend"] == "other"
    answer = await stream
    assert answer.done and answer.headers["x-rhizome-backend"] == url(one)
    assert face.proxy.router.counts.resumes == 0
    await eventually(lambda: len(face.proxy.registry) == 1)
