"""What is asked of an engine beside requests."""

from __future__ import annotations

from rhizome.engine.v1.engine_service_pb2 import GetModelInfoResponse
from rhizome_testing.engine_ways import DIRECT
from rhizome_testing.scripted_engine import TOKENIZER_FILES


async def test_model_info_tokenizer_and_load(wired):
    info = await wired.client.model_info()
    assert isinstance(info, GetModelInfoResponse)
    assert (info.model, info.instance_id) == ("scripted", "core-1")
    assert (await wired.client.tokenizer_files()).files == TOKENIZER_FILES
    if wired.way in DIRECT:
        assert (await wired.client.load()).running_requests == 3
    else:  # a proxy adds up what its engines told it last
        assert (await wired.client.load()).running_requests % 3 == 0


async def test_wait_ready_returns_and_gives_up(wired):
    await wired.client.wait_ready(5.0)
    await wired.client.close()
