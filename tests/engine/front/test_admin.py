"""EngineAdminService: prefixes warmed and pinned by text, and what the cache was good for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from rhizome.engine.v1 import engine_admin_service_pb2 as admin
from rhizome.engine.v1.engine_admin_service_pb2_grpc import EngineAdminServiceStub
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest, Message, Messages
from rhizome_testing.engine_process import EngineProcess
from rhizome_transport.errors import from_rpc_error

CONVERSATION = [Message(role="system", content="You answer every question in one short sentence.")]


@pytest.fixture
async def stub(shared_engine: EngineProcess) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(shared_engine.admin_target) as channel:
        yield EngineAdminServiceStub(channel)


async def test_a_conversation_warmed_by_an_operator_is_found_by_its_users(
    stub: Any, channel: grpc.aio.Channel
) -> None:
    warmed = await stub.WarmPrefix(
        admin.WarmPrefixRequest(messages=Messages(messages=CONVERSATION), cache_namespace="team", pin=True)
    )
    assert warmed.pin.tokens == warmed.pin.pages * 16 > 0
    question = [*CONVERSATION, Message(role="user", content="Why?")]
    request = GenerateRequest(messages=Messages(messages=question), cache_namespace="team")
    request.stop.max_tokens = 1
    events = [event async for event in EngineServiceStub(channel).Generate(request)]
    # The generation prompt at the end of what was warmed is not part of the longer conversation.
    assert events[0].started.cached_tokens >= warmed.pin.tokens - 16
    assert [pin.pin_id for pin in (await stub.ListPins(admin.ListPinsRequest())).pins] == [warmed.pin.pin_id]
    unpin = admin.UnpinPrefixRequest(pin_id=warmed.pin.pin_id)
    assert (await stub.UnpinPrefix(unpin)).unpinned
    assert not (await stub.UnpinPrefix(unpin)).unpinned


async def test_statistics_name_the_namespace(stub: Any) -> None:
    for _ in range(2):
        await stub.WarmPrefix(admin.WarmPrefixRequest(text="Counted twice, found once.", cache_namespace="c"))
    stats = await stub.GetCacheStats(admin.GetCacheStatsRequest())
    mine = next(one for one in stats.namespaces if one.cache_namespace == "c")
    assert (mine.hits, mine.misses) == (1, 1)
    assert mine.tokens_saved > 0
    assert stats.total.tokens_saved >= mine.tokens_saved


async def test_a_prefix_without_input_is_refused(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.WarmPrefix(admin.WarmPrefixRequest())
    assert from_rpc_error(caught.value).param == "input"
