"""What a policy does to requests of real peers."""

from __future__ import annotations

import random

import pytest

from rhizome.engine.v1.frames_pb2 import Submit
from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome.engine.v1.load_pb2 import Load

LOAD = Load(running_requests=0, waiting_requests=0, page_size=16, kv_pages_total=4096, instance_id="one")


async def converse(cluster, policy: str, tenants: int = 4, turns: int = 4) -> list[set[int]]:
    """For each tenant the engines that its turns, one longer than the other, went to."""
    engines = [await cluster.engine(load=LOAD) for _ in range(4)]
    proxy = await cluster.proxy(*engines, policy=policy)
    peer = await cluster.peer(proxy)
    dice = random.Random(0)
    talks = [[dice.randrange(50_000) for _ in range(1600)] for _ in range(tenants)]
    for turn in range(turns):
        for tenant, ids in enumerate(talks):
            ids += [dice.randrange(50_000) for _ in range(200)]
            request_id = f"{tenant}-{turn}"
            request = GenerateRequest(request_id=request_id, token_ids=TokenIds(ids=ids), tenant=str(tenant))
            await peer.send(submit=Submit(request=request))
            await peer.outcome(request_id)
    return [
        {
            number
            for number, engine in enumerate(engines)
            for submit in engine.submits
            if submit.request.tenant == str(tenant)
        }
        for tenant in range(tenants)
    ]


@pytest.mark.parametrize("policy", ["cost", "session"])
async def test_a_conversation_stays_at_its_engine(cluster, policy):
    assert all(len(engines) == 1 for engines in await converse(cluster, policy))


async def test_turns_go_round(cluster):
    assert set.union(*await converse(cluster, "round_robin", tenants=1)) == {0, 1, 2, 3}


async def test_an_engine_that_left_is_forgotten(cluster, eventually):
    engines = [await cluster.engine(load=LOAD) for _ in range(2)]
    proxy = await cluster.proxy(*engines)
    index = proxy.router.policy.policy.index
    peer = await cluster.peer(proxy)
    for number in range(8):
        ids = [number * 1000 + token for token in range(800)]
        request = GenerateRequest(request_id=f"r{number}", token_ids=TokenIds(ids=ids))
        await peer.send(submit=Submit(request=request))
        await peer.outcome(f"r{number}")
    left = next(engine for engine in engines if engine.submits)
    assert index.view(left.address).held
    await proxy.registry.remove(left.address)
    await eventually(lambda: not index.view(left.address).held)
