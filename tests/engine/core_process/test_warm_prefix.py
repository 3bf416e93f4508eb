"""Prefixes computed ahead and pinned, over the core's socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from rhizome.engine.v1.engine_admin_service_pb2 import (
    DrainRequest,
    FlushCacheRequest,
    FlushCacheResponse,
    GetCacheStatsRequest,
    GetCacheStatsResponse,
    ListPinsRequest,
    ListPinsResponse,
    UnpinPrefixRequest,
    UnpinPrefixResponse,
    WarmPrefixRequest,
    WarmPrefixResponse,
)
from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_engine.batch import Batch
from rhizome_testing.hash_core import HashCore, all_events, token_request, tokens_in
from rhizome_testing.hash_runner import HashStep, expected_tokens
from rhizome_transport.errors import EngineError
from rhizome_transport.zmq_client import ZmqEngineClient

PREFIX = list(range(1, 18))
"""Four pages of four tokens, and one token more."""


@pytest.fixture
def small_core(tmp_path: Path) -> Iterator[HashCore]:
    core = HashCore(tmp_path, max_pinned_tokens=20)
    yield core
    core.stop()


@pytest.fixture
def chunking_core(tmp_path: Path) -> Iterator[HashCore]:
    """100 tokens take it 25 steps."""
    core = HashCore(tmp_path, max_step_tokens=4)
    yield core
    core.stop()


async def warm(
    client: ZmqEngineClient, ids: list[int], pin_ms: int | None = None, **fields: object
) -> WarmPrefixResponse:
    request = WarmPrefixRequest(token_ids=TokenIds(ids=ids), **fields)  # type: ignore[arg-type]
    if pin_ms is not None:
        request.pin_for.FromMilliseconds(pin_ms)
    answers = await client.call("WarmPrefix", request.SerializeToString())
    return WarmPrefixResponse.FromString(answers[0])


async def pins(client: ZmqEngineClient) -> list[str]:
    answers = await client.call("ListPins", ListPinsRequest().SerializeToString())
    return [pin.pin_id for pin in ListPinsResponse.FromString(answers[0]).pins]


async def unpin(client: ZmqEngineClient, pin_id: str) -> bool:
    answers = await client.call("UnpinPrefix", UnpinPrefixRequest(pin_id=pin_id).SerializeToString())
    return UnpinPrefixResponse.FromString(answers[0]).unpinned


async def flush(client: ZmqEngineClient) -> int:
    answers = await client.call("FlushCache", FlushCacheRequest().SerializeToString())
    return FlushCacheResponse.FromString(answers[0]).freed_pages


async def test_a_warmed_prompt_is_found_in_its_namespace_only(client: ZmqEngineClient) -> None:
    first = await warm(client, PREFIX, cache_namespace="n")
    assert (first.prompt_tokens, first.cached_tokens, first.HasField("pin")) == (17, 0, False)
    assert (await warm(client, PREFIX, cache_namespace="n")).cached_tokens >= 16
    for namespace, found in (("n", 16), ("other", 0)):
        request = token_request([*PREFIX, 99])
        request.cache_namespace = namespace
        events = await all_events(client, request)
        assert events[0].started.cached_tokens >= found if found else events[0].started.cached_tokens == 0
        assert tokens_in(events) == expected_tokens([*PREFIX, 99], 5)
    assert await pins(client) == []


async def test_a_pinned_prefix_outlives_a_flush_and_all_others_until_it_is_unpinned(
    client: ZmqEngineClient,
) -> None:
    pin = (await warm(client, PREFIX, pin=True)).pin
    assert (pin.tokens, pin.pages, pin.HasField("expire_time")) == (16, 4, False)
    assert await pins(client) == [pin.pin_id]
    for start in range(100, 900, 40):  # 20 x 48 tokens through a pool of 256
        await all_events(client, token_request(list(range(start, start + 40)), max_tokens=8))
    await flush(client)
    events = await all_events(client, token_request([*PREFIX, 99]))
    assert events[0].started.cached_tokens == 16
    assert await unpin(client, pin.pin_id)
    assert not await unpin(client, pin.pin_id)
    await flush(client)
    assert (await client.load()).kv_pages_cached == 0
    assert await pins(client) == []


async def test_a_pin_ends_by_itself_although_nobody_asks_the_engine_anything(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    pin = (await warm(client, PREFIX, pin_ms=300)).pin
    assert pin.HasField("expire_time")
    async with asyncio.timeout(10):
        while hash_core.core.list_pins():  # noqa: ASYNC110 - looks without a frame
            await asyncio.sleep(0.01)
    assert await flush(client) >= 4


async def test_more_than_the_budget_is_refused_and_stays_evictable(small_core: HashCore) -> None:
    client = ZmqEngineClient(small_core.endpoint, peer_name="test")
    assert (await warm(client, PREFIX, pin=True)).pin.pages == 4
    with pytest.raises(EngineError) as caught:
        await warm(client, list(range(500, 517)), pin=True)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(await pins(client)) == 1
    assert await flush(client) >= 4
    await client.close()


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (WarmPrefixRequest(text="x"), "input"),
        (WarmPrefixRequest(token_ids=TokenIds(ids=[])), "prompt"),
        (WarmPrefixRequest(token_ids=TokenIds(ids=[10**6])), "prompt"),
        (WarmPrefixRequest(token_ids=TokenIds(ids=range(900))), "prompt"),
        (WarmPrefixRequest(model="other", token_ids=TokenIds(ids=[1])), "model"),
        (WarmPrefixRequest(token_ids=TokenIds(ids=PREFIX), pin_for=Duration(seconds=-1)), "pin_for"),
        (WarmPrefixRequest(token_ids=TokenIds(ids=PREFIX), pin_for=Duration(seconds=3 * 10**11)), "pin_for"),
    ],
)
async def test_what_cannot_be_warmed_is_refused_with_the_field(
    client: ZmqEngineClient, request_: WarmPrefixRequest, param: str
) -> None:
    with pytest.raises(EngineError) as caught:
        await client.call("WarmPrefix", request_.SerializeToString())
    assert caught.value.param == param


async def test_a_prefix_below_a_page_can_be_warmed_but_not_pinned(client: ZmqEngineClient) -> None:
    assert (await warm(client, [1, 2])).prompt_tokens == 2
    with pytest.raises(EngineError) as caught:
        await warm(client, [1, 2], pin=True)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_drained_engine_warms_nothing(client: ZmqEngineClient) -> None:
    await client.call("Drain", DrainRequest().SerializeToString())
    with pytest.raises(EngineError) as caught:
        await warm(client, PREFIX)
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


@pytest.mark.parametrize("how", ["vanishes", "gives up"])
async def test_an_asker_that_is_not_there_any_more_gets_no_pin(chunking_core: HashCore, how: str) -> None:
    core = chunking_core
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    launch = core.runner.launch

    def slow(batch: Batch) -> HashStep:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.02)
        return launch(batch)

    core.runner.launch = slow  # type: ignore[method-assign]
    asker = ZmqEngineClient(core.endpoint, peer_name="asker")
    asking = asyncio.create_task(warm(asker, list(range(100)), pin=True))
    await begun.wait()
    if how == "vanishes":
        await asker.close()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(10):
        while core.core.has_work:  # noqa: ASYNC110 - looks without a frame
            await asyncio.sleep(0.005)
    await asker.close()
    load = core.core.load()
    assert (load.kv_pages_in_use, load.totals.aborted, load.totals.completed) == (0, 1, 0)
    assert core.core.list_pins() == []


async def test_statistics_by_namespace_add_up(client: ZmqEngineClient) -> None:
    for namespace in ("a", "a", "b"):
        request = token_request(PREFIX)
        request.cache_namespace = namespace
        await all_events(client, request)
    answers = await client.call("GetCacheStats", GetCacheStatsRequest().SerializeToString())
    stats = GetCacheStatsResponse.FromString(answers[0])
    by_name = {one.cache_namespace: one for one in stats.namespaces}
    assert (by_name["a"].hits, by_name["a"].misses) == (1, 1)
    assert (by_name["b"].hits, by_name["b"].misses) == (0, 1)
    load = await client.load()
    assert stats.total.tokens_saved == by_name["a"].tokens_saved == load.totals.cache_hit_tokens >= 16
    assert stats.total.missed_tokens == load.totals.cache_miss_tokens
    assert stats.total.cached_pages == load.kv_pages_cached + load.kv_pages_in_use
