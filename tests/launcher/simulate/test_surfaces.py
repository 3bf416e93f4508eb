from __future__ import annotations

import asyncio
from typing import Any

import openai
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.launcher.simulate.conftest import Start, completion, exchange, until

from rhizome_launcher.simulate.flavours import FLAVOURS
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_launcher.simulate.physics import Physics

METRICS = {
    "vllm": {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries",
        "vllm:prefix_cache_hits",
        "vllm:generation_tokens",
        "vllm:cache_config_info",
    },
    "sglang": {
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
        "sglang:token_usage",
        "sglang:cache_hit_rate",
        "sglang:gen_throughput",
    },
    "llamacpp": {
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
        "llamacpp:predicted_tokens_seconds",
        "llamacpp:n_busy_slots_per_decode",
    },
    "tgi": {"tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens"},
}
OWNERS = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llamacpp",
    "tgi": "simulated",
    "ollama": "library",
    "openai": "simulated",
}
JSON_ROUTES = {
    "vllm": ("/version", "/load"),
    "sglang": ("/v1/loads", "/get_server_info", "/server_info", "/model_info"),
    "llamacpp": ("/health", "/slots", "/props"),
    "tgi": ("/info",),
    "ollama": ("/api/tags", "/api/version", "/api/ps"),
    "openai": (),
}


def client(server: HttpServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("kind", FLAVOURS)
async def test_the_openai_client_streams_from_every_kind(start: Start, kind: str) -> None:
    server = await start(kind)
    async with client(server) as sdk:
        messages: Any = [{"role": "user", "content": "Tell me."}]
        asked: dict[str, Any] = {"model": "simulated", "messages": messages, "max_tokens": 6}
        stream = await sdk.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        whole = await sdk.chat.completions.create(**asked)
        models = [model async for model in await sdk.models.list()]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len(text) == 6 * 4
    assert whole.choices[0].message.content == text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 6
    assert whole.usage.prompt_tokens == chunks[-1].usage.prompt_tokens > 3
    assert [(model.id, model.owned_by) for model in models] == [("simulated", OWNERS[kind])]


@pytest.mark.parametrize("kind", METRICS)
async def test_metrics_have_the_names_of_the_original_and_true_values(start: Start, kind: str) -> None:
    server = await start(kind, Physics(max_running=1, step_tokens=64, itl_base_ms=20))
    calls = [asyncio.create_task(exchange(server, "POST", "/v1/completions", completion())) for _ in range(3)]
    await until(lambda: server.engine.waiting == 2)
    status, page = await exchange(server, "GET", "/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(page.decode())}
    assert families.keys() >= METRICS[kind]
    waiting, running = {
        "vllm": ("vllm:num_requests_waiting", "vllm:num_requests_running"),
        "sglang": ("sglang:num_queue_reqs", "sglang:num_running_reqs"),
        "llamacpp": ("llamacpp:requests_deferred", "llamacpp:requests_processing"),
        "tgi": ("tgi_queue_size", "tgi_batch_current_size"),
    }[kind]
    assert families[waiting].samples[0].value == 2
    assert families[running].samples[0].value == 1
    assert [status for status, _ in await asyncio.gather(*calls)] == [200] * 3


@pytest.mark.parametrize(
    ("kind", "path"), [(kind, path) for kind in JSON_ROUTES for path in JSON_ROUTES[kind]]
)
async def test_other_routes_answer_json(start: Start, kind: str, path: str) -> None:
    status, body = await exchange(await start(kind), "GET", path)
    assert status == 200
    assert orjson.loads(body)


async def test_llama_cpp_shows_its_busy_slots_and_ends_with_timings(start: Start) -> None:
    server = await start("llamacpp", Physics(max_running=2, itl_base_ms=20))
    call = asyncio.create_task(exchange(server, "POST", "/v1/completions", completion()))
    await until(lambda: server.engine.running == 1)
    slots = orjson.loads((await exchange(server, "GET", "/slots"))[1])
    assert [slot["is_processing"] for slot in slots] == [True, False]
    timings = orjson.loads((await call)[1])["timings"]
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (0, 4, 8)


async def text_of(server: HttpServer, path: str, **fields: Any) -> str:
    status, body = await exchange(server, "POST", path, fields)
    assert status == 200, body
    choice = orjson.loads(body)["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


@pytest.mark.parametrize("cut", [0, 1, 7, 19])
async def test_a_completion_goes_on_where_another_server_was_cut(start: Start, cut: int) -> None:
    one, other = await start("vllm"), await start("sglang")
    fields = {"prompt": "It was a dark night", "seed": 5, "temperature": 0.7}
    whole = await text_of(one, "/v1/completions", **fields, max_tokens=20)
    begun = whole[: cut * 4]
    fields["prompt"] = "It was a dark night" + begun
    assert begun + await text_of(other, "/v1/completions", **fields, max_tokens=20 - cut) == whole
    fields["seed"] = 6
    assert begun + await text_of(other, "/v1/completions", **fields, max_tokens=20 - cut) != whole


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("vllm", {"continue_final_message": True, "add_generation_prompt": False}),
        ("llamacpp", {}),
    ],
)
async def test_a_chat_goes_on_from_the_assistants_words(
    start: Start, kind: str, more: dict[str, Any]
) -> None:
    server = await start(kind)
    asked = [{"role": "user", "content": "Hello"}]
    whole = await text_of(server, "/v1/chat/completions", messages=asked, max_tokens=10)
    begun = [*asked, {"role": "assistant", "content": whole[:16]}]
    rest = await text_of(server, "/v1/chat/completions", messages=begun, max_tokens=6, **more)
    assert whole[:16] + rest == whole


async def test_hash_ids_are_the_prompts_blocks(start: Start) -> None:
    server = await start("vllm", Physics(block_size=512, prefill_tokens_per_s=1e6))
    trace = [(6758, list(range(14))), (7322, [0, *range(14, 28)]), (6758, list(range(14)))]
    used = []
    for length, hash_ids in trace:
        fields = completion(prompt="", hash_ids=hash_ids, input_length=length, max_tokens=1)
        usage = orjson.loads((await exchange(server, "POST", "/v1/completions", fields))[1])["usage"]
        used.append((usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
    assert used == [(6758, 0), (7322, 512), (6758, 13 * 512)]


async def test_a_client_that_leaves_stops_its_request(start: Start) -> None:
    server = await start("vllm", Physics(itl_base_ms=5))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = orjson.dumps(completion(stream=True, max_tokens=100_000))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    await reader.readuntil(b'"text"')
    assert server.engine.running == 1
    writer.close()
    await until(lambda: server.engine.running == 0)
    assert server.engine.totals.aborted == 1


async def test_one_connection_carries_requests_one_after_the_other(start: Start) -> None:
    server = await start("vllm")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = orjson.dumps(completion(stream=True, max_tokens=3))
    ask = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    writer.write(ask + ask + b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    answers = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert answers.count(b"HTTP/1.1 200 OK") == 3
    assert answers.count(b"data: [DONE]") == 2
    assert answers.index(b'"owned_by"') > answers.rindex(b"data: [DONE]")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"model": "secret"}, 404),
        ({"n": 2}, 400),
        ({"prompt": {"secret": 1}}, 400),
        ({"max_tokens": -1}, 400),
        ({"max_tokens": "secret"}, 400),
        ({"hash_ids": [-1]}, 400),
        ({"max_tokens": 200_000}, 400),
    ],
)
async def test_what_is_wrong_is_said_without_an_echo(
    start: Start, fields: dict[str, Any], status: int
) -> None:
    server = await start("vllm")
    answered, body = await exchange(server, "POST", "/v1/completions", completion(**fields))
    assert answered == status
    assert orjson.loads(body)["error"]["message"]
    assert b"secret" not in body
    assert server.engine.due is None


@pytest.mark.parametrize("junk", [b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n"])
async def test_what_is_not_http_is_answered_and_closed(start: Start, junk: bytes) -> None:
    server = await start("vllm")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(junk)
    assert (await asyncio.wait_for(reader.read(), 5)).startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_an_old_client_gets_a_body_that_ends_with_the_connection(start: Start) -> None:
    server = await start("vllm")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = orjson.dumps(completion(stream=True, max_tokens=2))
    writer.write(b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert b"chunked" not in answer
    assert answer.endswith(b"data: [DONE]\n\n")
