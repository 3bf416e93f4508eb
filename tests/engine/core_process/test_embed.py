"""`Embed` over the core's socket: one call, many inputs, one answer or one error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from rhizome.engine.v1.engine_admin_service_pb2 import DrainRequest, DrainResponse
from rhizome.engine.v1.engine_service_pb2 import (
    POOLING_CLS,
    POOLING_LAST_TOKEN,
    POOLING_MEAN,
    POOLING_UNSPECIFIED,
    AbortRequest,
    EmbedRequest,
    EmbedResponse,
    GetLoadRequest,
    GetLoadResponse,
)
from rhizome.engine.v1.generate_pb2 import TokenIds
from rhizome_engine.core.embed_call import MAX_INPUTS
from rhizome_engine.core.served_model import ServedModel
from rhizome_engine.embedding.pooling import EmbeddingParams, Pooling
from rhizome_engine.embedding.recommendation import PoolingRecommendation
from rhizome_testing.hash_core import HashCore, all_events, token_request, tokens_in
from rhizome_testing.hash_runner import expected_embedding, expected_tokens
from rhizome_transport.errors import EngineError
from rhizome_transport.zmq_client import ZmqEngineClient

PROMPTS = [[(7 * place + number) % 1000 for place in range(5 + number % 40)] for number in range(60)]
POOLINGS = {
    POOLING_UNSPECIFIED: Pooling.MEAN,
    POOLING_MEAN: Pooling.MEAN,
    POOLING_LAST_TOKEN: Pooling.LAST_TOKEN,
    POOLING_CLS: Pooling.CLS,
}


def embed_request(prompts: list[list[int]], **fields: object) -> EmbedRequest:
    return EmbedRequest(inputs=[TokenIds(ids=ids) for ids in prompts], **fields)  # type: ignore[arg-type]


def vectors(response: EmbedResponse) -> list[list[float]]:
    return [list(embedding.values) for embedding in response.embeddings]


def assert_embedded(
    response: EmbedResponse, prompts: list[list[int]], params: EmbeddingParams | None = None
) -> None:
    expected = [expected_embedding(prompt, params or EmbeddingParams()) for prompt in prompts]
    assert vectors(response) == [pytest.approx(values, rel=1e-6) for values in expected]
    assert response.usage.prompt_tokens == sum(map(len, prompts))
    assert response.usage.completion_tokens == 0


async def eventually(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this did not come true in time"
        await asyncio.sleep(0.005)


@pytest.fixture
def slow_core(tmp_path: Path) -> Iterator[HashCore]:
    """Every step takes 20 ms and computes four tokens."""
    core = HashCore(tmp_path, max_step_tokens=4)
    core.slow_down()
    yield core
    core.stop()


@pytest.fixture
async def slow_client(slow_core: HashCore):  # type: ignore[no-untyped-def]
    one = ZmqEngineClient(slow_core.endpoint, peer_name="test")
    yield one
    await one.close()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [None, True, False])
async def test_vectors_come_in_the_order_of_the_inputs(
    client: ZmqEngineClient, pooling: int, normalize: bool | None
) -> None:
    request = embed_request(PROMPTS, pooling=pooling, normalize=normalize)
    params = EmbeddingParams(POOLINGS[pooling], normalize is not False)
    assert_embedded(await client.embed(request), PROMPTS, params)


async def test_last_token_pooling_finds_prefixes_in_its_namespace(client: ZmqEngineClient) -> None:
    long = list(range(100, 140))
    fields = {"pooling": POOLING_LAST_TOKEN, "cache_namespace": "mine"}
    first = await client.embed(embed_request([[*long, 1]], **fields))
    second = await client.embed(embed_request([[*long, 2], [*long, 3]], **fields))
    other = await client.embed(embed_request([[*long, 2]], pooling=POOLING_LAST_TOKEN))
    assert [r.usage.cached_tokens for r in (first, second, other)] == [0, 80, 0]
    assert_embedded(second, [[*long, 2], [*long, 3]], EmbeddingParams(Pooling.LAST_TOKEN))


async def test_generation_goes_on_beside_a_call_larger_than_the_queue(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    hash_core.slow_down(0.01)
    prompts = [[number, *range(20)] for number in range(500)]
    embedding = asyncio.create_task(client.embed(embed_request(prompts, request_id="big")))
    await eventually(lambda: hash_core.core.has_work)
    for number in range(5):
        events = await all_events(client, token_request([number], max_tokens=5))
        assert tokens_in(events) == expected_tokens([number], 5)
    assert not embedding.done()
    assert_embedded(await embedding, prompts)


@pytest.mark.parametrize(
    ("request_", "param", "words"),
    [
        (embed_request([]), "inputs", "1 to 2048 inputs, not 0"),
        (embed_request([[1]] * (MAX_INPUTS + 1)), "inputs", "not 2049"),
        (embed_request([[1], []]), "inputs[1]", "inputs[1]: the prompt is empty"),
        (embed_request([[1], [2], [1000]]), "inputs[2]", "token id 1000"),
        (embed_request([[1], [1] * 257]), "inputs[1]", "257 tokens, but the context window is 256"),
        (embed_request([[1] * 2**20] * 3), "inputs", "3145728 tokens"),
        (embed_request([[1]], pooling=77), "pooling", "77"),
        (embed_request([[1]], tenant="x" * 300), "tenant", "300"),
    ],
)
async def test_refuses_what_cannot_be_embedded(
    hash_core: HashCore, client: ZmqEngineClient, request_: EmbedRequest, param: str, words: str
) -> None:
    with pytest.raises(EngineError) as caught:
        await client.embed(request_)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.param == param and words in caught.value.message
    assert hash_core.core.load().totals.received == 0
    assert_embedded(await client.embed(embed_request([[1]])), [[1]])


async def test_refuses_a_model_that_is_not_served(client: ZmqEngineClient) -> None:
    with pytest.raises(EngineError) as caught:
        await client.embed(embed_request([[1]], model="other"))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND


async def test_answers_too_large_for_a_message_are_refused_before_they_are_computed(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    hash_core._server._model.info.embedding_size = 100_000
    with pytest.raises(EngineError, match="send at most 150 inputs"):
        await client.embed(embed_request([[1]] * 151))
    assert len((await client.embed(embed_request([[1]] * 150))).embeddings) == 150


async def test_a_pooling_that_is_not_implemented_has_to_be_chosen(
    hash_core: HashCore, client: ZmqEngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hash_core._server._model
    recommendation = PoolingRecommendation(None, "it asks for pooling_mode_max_tokens")
    other = ServedModel(model.name, model.info, {}, model.default_sampling, recommendation)
    monkeypatch.setattr(hash_core._server, "_model", other)
    with pytest.raises(EngineError, match=r"pooling_mode_max_tokens.*choose mean") as caught:
        await client.embed(embed_request([[1]]))
    assert caught.value.param == "pooling"
    assert_embedded(await client.embed(embed_request([[1]], pooling=POOLING_MEAN)), [[1]])


async def test_a_call_ends_at_its_deadline(slow_core: HashCore, slow_client: ZmqEngineClient) -> None:
    with pytest.raises(EngineError) as caught:
        await slow_client.embed(embed_request([[1] * 100] * 20), timeout_s=0.3)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: not slow_core.core.has_work)
    totals = (await slow_client.load()).totals
    assert totals.received == totals.expired == 20


@pytest.mark.parametrize("way", ["cancel", "vanish", "abort"])
async def test_giving_up_frees_everything(
    slow_core: HashCore, slow_client: ZmqEngineClient, way: str
) -> None:
    asker = ZmqEngineClient(slow_core.endpoint, peer_name="asker")
    embedding = asyncio.create_task(asker.embed(embed_request([[1] * 250] * 20, request_id="mine")))
    await eventually(lambda: slow_core.core.load().kv_pages_in_use > 0)
    if way == "cancel":
        embedding.cancel()
    elif way == "vanish":
        await asker.close()
    else:
        await slow_client.call("Abort", AbortRequest(request_ids=["mine"]).SerializeToString())
    with pytest.raises((EngineError, asyncio.CancelledError)) as caught:
        await embedding
    if way == "abort":  # a code with which no proxy tries it again elsewhere
        assert isinstance(caught.value, EngineError) and caught.value.code is grpc.StatusCode.ABORTED
    await eventually(lambda: not slow_core.core.has_work)
    load = await slow_client.load()
    assert (load.kv_pages_in_use, load.waiting_requests, load.running_requests) == (0, 0, 0)
    assert load.totals.aborted == load.totals.received == 20
    await asker.close()


async def test_a_failed_step_fails_the_call_and_frees_the_other_inputs(
    hash_core: HashCore, client: ZmqEngineClient
) -> None:
    hash_core.runner.fail_next = 1
    with pytest.raises(EngineError, match=r"^inputs\[0\]: ") as caught:
        await client.embed(embed_request(PROMPTS))
    assert caught.value.code is grpc.StatusCode.INTERNAL
    await eventually(lambda: not hash_core.core.has_work)
    assert (await client.load()).kv_pages_in_use == 0
    assert_embedded(await client.embed(embed_request(PROMPTS)), PROMPTS)


async def test_a_full_queue_refuses_with_a_retry_hint(
    slow_core: HashCore, slow_client: ZmqEngineClient
) -> None:
    calls = [slow_client.embed(embed_request([[1] * 40] * 3)) for _ in range(12)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = [result for result in results if isinstance(result, EngineError)]
    served = [result for result in results if isinstance(result, EmbedResponse)]
    assert refused and served
    assert {error.code for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all(error.retry_after_s for error in refused)
    for response in served:
        assert_embedded(response, [[1] * 40] * 3)


async def test_drain_waits_for_calls_and_refuses_new_ones(
    slow_core: HashCore, slow_client: ZmqEngineClient
) -> None:
    embedding = asyncio.create_task(slow_client.embed(embed_request([[1] * 8] * 10)))
    await eventually(lambda: slow_core.core.has_work)
    answers = await slow_client.call("Drain", DrainRequest().SerializeToString())
    assert DrainResponse.FromString(answers[0]).cancelled_requests == 0
    assert_embedded(await embedding, [[1] * 8] * 10)
    with pytest.raises(EngineError) as caught:
        await slow_client.embed(embed_request([[1]]))
    assert caught.value.reason == "DRAINING"


async def test_every_input_is_counted_once(hash_core: HashCore, client: ZmqEngineClient) -> None:
    response = await client.embed(embed_request(PROMPTS))
    answers = await client.call("GetLoad", GetLoadRequest().SerializeToString())
    report = GetLoadResponse.FromString(answers[0])
    totals = report.load.totals
    assert totals.received == totals.completed == len(PROMPTS)
    assert totals.prompt_tokens == totals.cache_miss_tokens == response.usage.prompt_tokens
    assert totals.generated_tokens == 0
    histograms = report.histograms
    for name in ("queue_seconds", "prefill_seconds", "cached_tokens"):
        assert sum(getattr(histograms, name).counts) == len(PROMPTS), name
    assert sum(histograms.decode_seconds.counts) == 0
    assert histograms.queue_seconds.sum == pytest.approx(totals.queue_time.ToNanoseconds() / 1e9)


async def test_bytes_that_are_no_request_are_refused(client: ZmqEngineClient) -> None:
    with pytest.raises(EngineError, match="no EmbedRequest") as caught:
        await client.call("Embed", b"\xff\xff")
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_large_answer_comes_in_parts_and_leaves_others_alone(
    hash_core: HashCore, client: ZmqEngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = np.arange(200_000, dtype=np.float32)
    monkeypatch.setattr(
        hash_core.runner, "_pool", lambda batch, row: wide + batch.token_ids[batch.query_start[row.row]]
    )
    request = embed_request([[number] for number in range(20)], normalize=False)
    answers = await client.call("Embed", request.SerializeToString())
    assert len(answers) == 11 and max(map(len, answers)) < 2**21
    response = EmbedResponse.FromString(b"".join(answers))
    assert [embedding.values[1] for embedding in response.embeddings] == [n + 1.0 for n in range(20)]
    assert response.usage.prompt_tokens == 20
    assert len((await client.embed(request)).embeddings) == 20


async def test_a_drain_whose_time_is_over_ends_calls(
    slow_core: HashCore, slow_client: ZmqEngineClient
) -> None:
    embedding = asyncio.create_task(slow_client.embed(embed_request([[1] * 250] * 20)))
    await eventually(lambda: slow_core.core.has_work)
    request = DrainRequest()
    request.timeout.FromMilliseconds(50)
    answers = await slow_client.call("Drain", request.SerializeToString())
    assert DrainResponse.FromString(answers[0]).cancelled_requests == 20
    with pytest.raises(EngineError) as caught:  # so that a proxy sends it to another engine
        await embedding
    assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
