"""What the client makes of good answers, and of each way in which a server can fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from tests.launcher.bench.conftest import TEMPLATE_TOKENS, TOKENS_PER_WORD, Behaviour, PuppetServer

from rhizome_launcher.bench.calibration import GUESS, token_rate
from rhizome_launcher.bench.client import OpenAIClient
from rhizome_launcher.bench.errors import BenchError
from rhizome_launcher.bench.records import RequestRecord
from rhizome_launcher.bench.workload import WORDS


@pytest_asyncio.fixture(params=["chat", "completions"])
async def client(puppet: PuppetServer, request: pytest.FixtureRequest) -> AsyncIterator[OpenAIClient]:
    async with OpenAIClient(puppet.url, endpoint=request.param, api_key="k", timeout_s=5) as opened:
        yield opened


def body_text(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"] if "messages" in body else body["prompt"])


async def ask(client: OpenAIClient, text: str = "one two") -> RequestRecord:
    return await client.send(client.body(text, "puppet", 9, {"temperature": 0.5}))


async def test_times_and_counts_of_a_good_answer(client: OpenAIClient, puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(first_s=0.15, gap_s=0.3)
    record = await ask(client)
    assert record.ok and record.counted_by_server
    assert (record.prompt_tokens, record.output_tokens) == (TEMPLATE_TOKENS + 2 * TOKENS_PER_WORD, 6)
    assert record.cached_tokens == 1
    assert len(record.text_s) == 3
    assert record.ttft_s is not None and record.ttft_s >= 0.15  # the empty first chunk is no text
    assert len(record.gaps_s) == 2
    assert sum(record.gaps_s) >= 0.3  # of 0.6: each piece has its own time, and a first one may be late
    assert record.e2e_s >= 0.75


async def test_asks_for_a_stream_with_usage(client: OpenAIClient, puppet: PuppetServer) -> None:
    await ask(client)
    (body,) = puppet.bodies
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("puppet", 9, 0.5)


async def test_without_usage_pieces_are_counted(client: OpenAIClient, puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(usage=False)
    record = await ask(client)
    assert record.ok and not record.counted_by_server
    assert record.output_tokens == 3


@pytest.mark.parametrize(
    ("behaviour", "error", "detail"),
    [
        (Behaviour(status=500), "http_500", "no [such] luck"),
        (Behaviour(status=429), "http_429", "no [such] luck"),
        (Behaviour(finish=False), "truncated", "after 3 pieces"),
        (Behaviour(cut_after=1), "connection_lost", ""),
        (Behaviour(error_after=2), "error_event", "the model broke"),
        (Behaviour(garbage=b"data: <html>\n\n"), "bad_stream", "no OpenAI stream"),
        (Behaviour(garbage=b"data: [1]\n\n"), "bad_stream", "no OpenAI stream"),
        (Behaviour(garbage=b"\xff\xfe\x00"), "truncated", "after 0 pieces"),
    ],
)
async def test_failures_have_their_kind(
    client: OpenAIClient, puppet: PuppetServer, behaviour: Behaviour, error: str, detail: str
) -> None:
    puppet.behave = lambda index: behaviour
    record = await ask(client)
    assert (record.error, record.ok) == (error, False)
    assert detail in record.detail
    assert record.ended_s >= record.started_s


async def test_an_answer_that_takes_too_long_is_given_up(puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(first_s=30)
    async with OpenAIClient(puppet.url, endpoint="chat", api_key="", timeout_s=0.3) as client:
        record = await ask(client)
    assert record.error == "timeout"
    assert 0.3 <= record.e2e_s < 5


async def test_nobody_listens() -> None:
    async with OpenAIClient("http://127.0.0.1:9", endpoint="chat", api_key="", timeout_s=5) as client:
        assert (await ask(client)).error == "connection_refused"
        with pytest.raises(BenchError, match=r"no server answers at http://127\.0\.0\.1:9/v1/models"):
            await client.first_model()


async def test_a_late_request_is_measured_from_when_it_was_due(client: OpenAIClient) -> None:
    due = time.perf_counter() - 1.0
    record = await client.send(client.body("a", "puppet", 1, {}), due)
    assert record.started_s == due
    assert record.ttft_s is not None and record.ttft_s > 1.0


async def test_the_url_may_end_in_v1(puppet: PuppetServer) -> None:
    for url in (puppet.url, puppet.url + "/", puppet.url + "/v1", puppet.url + "/v1/"):
        async with OpenAIClient(url, endpoint="chat", api_key="", timeout_s=5) as client:
            assert await client.first_model() == "puppet"


async def test_calibration_finds_tokens_per_word_and_what_the_template_adds(
    client: OpenAIClient, puppet: PuppetServer
) -> None:
    rate = await token_rate(client, "puppet", {})
    assert (rate.per_word, rate.fixed) == (TOKENS_PER_WORD, TEMPLATE_TOKENS)
    assert [body["max_tokens"] for body in puppet.bodies] == [1, 1]
    assert [len(body_text(body).split()) for body in puppet.bodies] == [len(WORDS), 2 * len(WORDS)]


async def test_calibration_guesses_where_no_usage_is_reported(
    client: OpenAIClient, puppet: PuppetServer
) -> None:
    puppet.behave = lambda index: Behaviour(usage=False)
    assert await token_rate(client, "puppet", {}) == GUESS


async def test_calibration_explains_a_refusal(client: OpenAIClient, puppet: PuppetServer) -> None:
    puppet.behave = lambda index: Behaviour(status=400)
    with pytest.raises(BenchError, match=r"http_400.*If it does not know ignore_eos"):
        await token_rate(client, "puppet", {"ignore_eos": True})


async def test_a_conversation_needs_the_chat_endpoint(puppet: PuppetServer) -> None:
    async with OpenAIClient(puppet.url, endpoint="completions", api_key="", timeout_s=5) as client:
        with pytest.raises(BenchError, match="--endpoint chat"):
            client.body([{"role": "user", "content": "a"}], "puppet", 1, {})
