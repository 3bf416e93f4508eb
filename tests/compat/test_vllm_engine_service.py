"""What vLLM's contract has beside `Generate`, by a real engine."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import signal
import zipfile
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tests.compat.conftest import DEMO
from tests.compat.vllm_asking import QUESTION, TOKENIZER, ask, complete

from rhizome.engine.v1.engine_admin_service_pb2 import DrainRequest
from rhizome.engine.v1.engine_admin_service_pb2_grpc import EngineAdminServiceStub
from rhizome.engine.v1.engine_service_pb2 import EmbedRequest, GetModelInfoRequest
from rhizome.engine.v1.generate_pb2 import GenerateRequest, TokenIds
from rhizome_engine.compat.front_part import VLLM_ENGINE
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.text_requests import run
from rhizome_text.tokenizer import Tokenizer
from rhizome_transport.block_hashes import block_hashes

vllm = pytest.importorskip("smg_grpc_proto", reason="pip install smg-grpc-proto").vllm_engine_pb2
from smg_grpc_proto import vllm_engine_pb2_grpc  # noqa: E402
from smg_grpc_proto.generated import common_pb2 as common  # noqa: E402


async def test_model_server_and_load_are_told(stub: Any, native: Any) -> None:
    info = await native.GetModelInfo(GetModelInfoRequest())
    model = await stub.GetModelInfo(vllm.GetModelInfoRequest())
    assert (model.served_model_name, model.model_path, model.tokenizer_path) == ("demo", str(DEMO), str(DEMO))
    assert (model.vocab_size, model.max_context_length) == (info.vocab_size, info.max_context_tokens)
    assert (list(model.eos_token_ids), model.model_type) == (list(info.eos_token_ids), "llama")
    assert model.is_generation and not model.supports_vision
    assert (model.bos_token_id, model.pad_token_id) == (TOKENIZER.bos_id, 7)
    assert json.loads(model.default_sampling_params_json) == {"temperature": 0.0}
    server = await stub.GetServerInfo(vllm.GetServerInfoRequest())
    assert (server.server_type, server.data_parallel_size) == ("vllm-grpc", 1)
    assert server.uptime_seconds > 0 and server.block_size == info.page_size
    await complete(stub, ask(QUESTION, max_tokens=2))
    loads = await stub.GetLoads(vllm.GetLoadsRequest(include=["core"]))
    (rank,) = loads.loads
    assert loads.dp_rank_count == 1 and loads.version == info.version
    assert rank.max_total_num_tokens == info.kv_pages_total * info.page_size
    assert rank.num_total_reqs == rank.num_running_reqs + rank.num_waiting_reqs
    assert 0 <= rank.token_usage <= 1 and 0 < rank.cache_hit_rate < 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetLoads(vllm.GetLoadsRequest(dp_rank=1))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_by_its_own_method_and_by_the_health_service(stub: Any, engine: EngineProcess) -> None:
    health = await stub.HealthCheck(vllm.HealthCheckRequest())
    assert health.healthy
    await asyncio.to_thread(engine.wait_for_health, engine.target, VLLM_ENGINE, 30.0)


async def test_the_tokenizer_comes_as_a_zip_file_in_pieces(stub: Any) -> None:
    for _ in range(2):
        pieces = [piece async for piece in stub.GetTokenizer(common.GetTokenizerRequest())]
        bundle = b"".join(piece.data for piece in pieces)
        assert max(len(piece.data) for piece in pieces) <= 64 * 1024
        assert [bool(piece.sha256) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert pieces[-1].sha256 == hashlib.sha256(bundle).hexdigest()
    with zipfile.ZipFile(io.BytesIO(bundle)) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    assert files["config.json"] == (DEMO / "config.json").read_bytes()
    assert Tokenizer.from_files(files).encode("Hello there") == TOKENIZER.encode("Hello there")


async def test_embeddings_are_our_own(stub: Any, native: Any) -> None:
    vector = await stub.Embed(vllm.EmbedRequest(tokenized=vllm.TokenizedInput(input_ids=QUESTION)))
    ours = await native.Embed(EmbedRequest(inputs=[TokenIds(ids=QUESTION)]))
    assert list(vector.embedding) == pytest.approx(list(ours.embeddings[0].values), abs=1e-6)
    assert (vector.prompt_tokens, vector.embedding_dim) == (len(QUESTION), len(vector.embedding))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Embed(vllm.EmbedRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_what_else_the_contract_has_is_declined(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.FlushCache(common.FlushCacheRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


class Blocks:
    """What a subscriber knows, and that it may rely on the numbers."""

    def __init__(self, sequence: int = 0) -> None:
        self.sequence = sequence
        self.tokens: dict[int, list[int]] = {}

    async def read_until(self, stream: Any, wanted: set[int]) -> None:
        async with asyncio.timeout(30):
            while self.hashes != wanted:
                self.apply(await stream.read())

    @property
    def hashes(self) -> set[int]:
        return {one % 2**64 for one in self.tokens}

    def apply(self, batch: Any) -> None:
        assert batch.sequence_number == self.sequence + 1
        self.sequence = batch.sequence_number
        for event in batch.events:
            kind = event.WhichOneof("data")
            if kind == "cleared":
                self.tokens.clear()
            elif kind == "removed":
                for one in event.removed.block_hashes:
                    del self.tokens[one]
            else:
                before: list[int] = []
                if event.stored.HasField("parent_block_hash"):
                    before = self.tokens[event.stored.parent_block_hash]
                for block in event.stored.blocks:
                    assert len(block.token_ids) == block.block_size
                    before = self.tokens[block.block_hash] = [*before, *block.token_ids]


async def test_kv_events_tell_blocks_with_their_tokens(stub: Any, native: Any, channel: Any) -> None:
    size = (await native.GetModelInfo(GetModelInfoRequest())).page_size

    async def leave_in_cache(start: int, namespace: str = "") -> set[int]:
        request = GenerateRequest(cache_namespace=namespace)
        request.token_ids.ids.extend(range(start, start + 50))
        request.sampling.temperature = 0
        request.stop.max_tokens = 1
        await run(native, request)
        return {*block_hashes(list(range(start, start + 50)), size, namespace).tolist()}

    first = await leave_in_cache(100)
    subscription = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest())
    blocks = Blocks()
    blocks.apply(await subscription.read())
    assert first <= blocks.hashes, "the snapshot has what was there before"
    known = blocks.hashes
    tenants = await leave_in_cache(100, "tenant")
    known |= await leave_in_cache(300)
    await blocks.read_until(subscription, known)
    assert not tenants & blocks.hashes, "what a tenant asked is nobody else's business"
    for block_hash, tokens in blocks.tokens.items():
        assert block_hashes(tokens, size, "").tolist()[-1] == block_hash % 2**64
    subscription.cancel()

    resumed = Blocks(blocks.sequence)
    known |= await leave_in_cache(600)
    again = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest(start_sequence_number=blocks.sequence))
    await resumed.read_until(again, known)
    again.cancel()


async def test_a_drained_engine_is_not_healthy_and_subscribers_do_not_hold_up_its_end(tmp_path: Path) -> None:
    with EngineProcess(DEMO, tmp_path, "--vllm-grpc", "on") as engine:
        engine.wait_serving()
        async with (
            asyncio.timeout(60),
            grpc.aio.insecure_channel(engine.target) as channel,
            grpc.aio.insecure_channel(engine.admin_target) as admin_channel,
        ):
            stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)
            subscription = stub.SubscribeKvEvents(common.SubscribeKvEventsRequest())
            await subscription.read()
            admin: Any = EngineAdminServiceStub(admin_channel)
            await admin.Drain(DrainRequest())
            health = await stub.HealthCheck(vllm.HealthCheckRequest())
            assert not health.healthy and "no new requests" in health.message
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await complete(stub, ask(QUESTION))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            engine.signal(signal.SIGTERM)
            with pytest.raises(grpc.aio.AioRpcError):
                await subscription.read()
            assert await asyncio.to_thread(engine.wait, 20) == 0
