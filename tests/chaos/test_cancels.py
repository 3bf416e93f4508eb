"""A thousand cancels a second: whoever hangs up takes nothing along, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.chaos.asking import End, Traffic, ends, tokens_wanted
from tests.chaos.at_rest import assert_engines_free, assert_nothing_leaked, assert_one_end_each
from tests.chaos.conftest import FULL, Report
from tests.chaos.stack import WholeStack

from rhizome_transport.errors import EngineError
from rhizome_transport.grpc_client import GrpcEngineClient

CANCELS_PER_S = 1000
SECONDS = 15 if FULL else 1
BURST = 50


@pytest.mark.timeout(300)
async def test_a_thousand_cancels_a_second_leave_every_page_free(stack: WholeStack, report: Report) -> None:
    before = await asyncio.to_thread(stack.held)
    refused, total = 0, CANCELS_PER_S * SECONDS
    async with Traffic(stack, 2.0, seed=3) as others:
        client = GrpcEngineClient(stack.proxy, peer_name="quitter")
        await client.wait_ready(10)
        began_s = time.monotonic()
        for burst in range(total // BURST):
            for place in range(BURST):
                refused += await _begin_and_cancel(client, late=place % 2 == 1)
            await asyncio.sleep(max(0.0, began_s + (burst + 1) * BURST / CANCELS_PER_S - time.monotonic()))
        took_s = time.monotonic() - began_s
        await client.close()
        asked = await others.stop()
    report["cancels"] = f"{total} in {took_s:.1f} s ({total / took_s:.0f} a second), {refused} refused"
    report["others"] = ends(asked)
    assert_one_end_each(others.sent, asked)
    assert {one.end for one in asked} <= {End.ANSWER, End.CANCEL}, ends(asked)
    await asyncio.to_thread(assert_engines_free, stack)
    await asyncio.to_thread(assert_nothing_leaked, stack, before)


async def _begin_and_cancel(client: GrpcEngineClient, *, late: bool) -> int:
    """Begin a long request and end it: at once, or when others had their turn; 1 where it was refused."""
    try:
        stream = await client.open(tokens_wanted(1000), lambda: None)
    except EngineError:
        return 1
    if late:
        await asyncio.sleep(0.001)
    stream.close()
    return 0
