"""`GetCacheTree` of a real engine: tokens for who shares its host, counts for everybody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from rhizome.engine.v1.engine_service_pb2 import (
    CacheTier,
    GetCacheTreeRequest,
    GetCacheTreeResponse,
    GetLoadRequest,
)
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.text_requests import run
from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.zmq_client import ZmqEngineClient

PROMPT = list(range(30, 130))


async def test_the_tree_holds_what_was_asked(
    start_engine: Callable[..., EngineProcess], tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/run/core.ipc"
    engine = start_engine("--core-endpoint", endpoint)
    engine.wait_serving()
    direct = ZmqEngineClient(endpoint, peer_name="test")
    remote = GrpcEngineClient(engine.target, peer_name="test")
    wanted = GetCacheTreeRequest(with_token_ids=True)
    async with asyncio.timeout(60), grpc.aio.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)
        for namespace in ("", "tenant"):
            request = GenerateRequest(cache_namespace=namespace)
            request.token_ids.ids.extend(PROMPT)
            request.stop.max_tokens = 4
            await run(stub, request)
        (tree,) = (await stub.GetCacheTree(wanted)).trees
        assert [part.cache_namespace for part in tree.namespaces] == ["", "tenant"]
        assert not any(node.token_ids for part in tree.namespaces for node in part.nodes)
        for part in tree.namespaces:
            assert sum(node.tokens for node in part.nodes) >= len(PROMPT) // tree.page_size * tree.page_size
            assert not part.nodes[0].HasField("parent_id")
        one = await stub.GetCacheTree(GetCacheTreeRequest(cache_namespace="tenant", max_nodes=1))
        assert [part.cache_namespace for part in one.trees[0].namespaces] == ["tenant"]

        answers = await direct.call("GetCacheTree", wanted.SerializeToString())
        nodes = GetCacheTreeResponse.FromString(answers[0]).trees[0].namespaces[0].nodes
        told = [token_id for node in nodes for token_id in node.token_ids]
        assert told[: len(PROMPT) // 16 * 16] == PROMPT[: len(PROMPT) // 16 * 16]

        with pytest.raises(EngineError, match="call the method itself"):  # not round the front either
            await remote.frames.call("GetCacheTree", wanted.SerializeToString(), timeout_s=10)
    await direct.close()
    await remote.close()


async def test_the_tree_shows_what_only_the_host_has(start_engine: Callable[..., EngineProcess]) -> None:
    engine = start_engine("--max-cache-tokens", "256", "--kv-host-memory", "4MiB", "--admin-port", "0")
    engine.wait_serving()
    prompts = [[number, *PROMPT] for number in range(3, 8)]
    async with asyncio.timeout(60), grpc.aio.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)

        async def cached_tokens(prompt: list[int]) -> int:
            request = GenerateRequest()
            request.token_ids.ids.extend(prompt)
            request.stop.max_tokens = 2
            request.sampling.temperature = 0.0
            return (await run(stub, request))[-1].finished.usage.cached_tokens

        assert [await cached_tokens(prompt) for prompt in prompts] == [0] * 5
        (tree,) = (await stub.GetCacheTree(GetCacheTreeRequest())).trees
        tokens: dict[int, int] = {}
        for node in tree.namespaces[0].nodes:
            tokens[node.tier] = tokens.get(node.tier, 0) + node.tokens
        assert tree.host_pages_total > tree.pages_total == 16
        assert tokens[CacheTier.CACHE_TIER_HOST] >= 2 * 96 and sum(tokens.values()) == 5 * 96
        assert tokens.get(CacheTier.CACHE_TIER_DEVICE_AND_HOST, 0) + tokens[0] <= 256
        assert await cached_tokens(prompts[0]) == 96
        load = (await stub.GetLoad(GetLoadRequest())).load
        assert (load.host_pages_total, load.totals.host_loaded_tokens) == (tree.host_pages_total, 96)
        assert load.host_pages_cached * tree.page_size == load.totals.host_saved_tokens >= 3 * 96
