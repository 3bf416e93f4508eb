"""Events arrive whole, in order, and with the request that they belong to."""

from __future__ import annotations

import asyncio

from rhizome.engine.v1.generate_pb2 import FINISH_REASON_STOP, GenerateRequest, TokenIds
from rhizome_testing.engine_ways import DIRECT, ask, kinds, tokens_of


async def test_streams_started_deltas_and_finished_in_order(wired):
    events = [event async for event in wired.client.generate(ask("count-1", 20))]
    order = kinds(events)
    assert order[0] == "started"
    assert order[-1] == "finished"
    assert set(order[1:-1]) == {"delta"}
    assert tokens_of(events) == list(range(20))
    assert events[-1].finished.reason == FINISH_REASON_STOP


async def test_fills_in_a_missing_request_id(wired):
    request = ask("", 3)
    [event async for event in wired.client.generate(request)]
    assert request.request_id
    assert wired.core.script.submits[0].request.request_id == request.request_id


async def test_many_requests_share_the_stream_without_mixing(wired):
    async def run(number: int) -> list[int]:
        request = GenerateRequest(
            request_id=f"count-{number}", token_ids=TokenIds(ids=range(number, number + 30))
        )
        return tokens_of([event async for event in wired.client.generate(request)])

    answers = await asyncio.gather(*(run(number) for number in range(40)))
    assert answers == [list(range(number, number + 30)) for number in range(40)]
    if wired.way in DIRECT:  # a proxy has a connection of its own beside those of its peers
        assert wired.core.peers == 1
