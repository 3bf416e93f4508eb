"""KV events of backends that speak HTTP."""

from __future__ import annotations

import asyncio

import pytest
from tests.backends.conftest import opening
from tests.backends.test_vllm_events import CHAIN, Publisher, as_map, store
from tests.relay.conftest import eventually

from rhizome_relay.pool import Pools
from rhizome_routing.prefix.index import PrefixIndex


@pytest.mark.parametrize("kind", ["", "vllm", "sglang"])
async def test_follows_what_it_publishes_and_what_it_sends_again(pools: Pools, kind: str) -> None:
    index, publisher = PrefixIndex(), Publisher()
    events = f"{publisher.endpoint},{publisher.replay_endpoint}"
    server = opening("http://127.0.0.1:1", kind=kind, events=events, pools=pools)
    following = asyncio.create_task(server.follow(index, "v"))
    await publisher.wait_subscribed()
    await publisher.send(0, as_map(store(0, 2)), lose=True)
    await publisher.send(1, as_map(store(2, 3)))
    await eventually(lambda: index.view("v").exact)  # once it knows that no more is sent again
    assert index.match(CHAIN) == {"v": 3}
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert not index.view("v").exact
    publisher.close()


async def test_who_publishes_nothing_is_not_followed(pools: Pools) -> None:
    async with asyncio.timeout(5):
        await opening("http://127.0.0.1:1", kind="vllm", pools=pools).follow(PrefixIndex(), "v")
