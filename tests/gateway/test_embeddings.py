import asyncio
import base64
import hashlib
import struct
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from openai.types import CreateEmbeddingResponse
from tests.gateway.conftest import eventually

from rhizome.engine.v1.engine_service_pb2 import POOLING_CLS, POOLING_LAST_TOKEN, POOLING_MEAN
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing
from rhizome_testing.otlp_sink import OtlpSink
from rhizome_testing.talking_engine import TalkingEngine
from rhizome_transport.errors import EngineError

THIRD = struct.unpack("<f", struct.pack("<f", 1 / 3))[0]


async def ask(gateway: Any, **fields: Any) -> httpx.Response:
    body = {"model": "talking-model", "input": "Hi"} | fields
    answer: httpx.Response = await gateway.http.post("/v1/embeddings", json=body)
    return answer


@pytest.mark.parametrize("encoding_format", [None, "float", "base64"])
async def test_answers_the_official_client(gateway, encoding_format: Any) -> None:
    """Which asks for base64 by itself, and decodes it."""
    given = {} if encoding_format is None else {"encoding_format": encoding_format}
    answer = await gateway.openai.embeddings.create(model="talking-model", input=["Hi", "abc"], **given)
    vectors = [entry.embedding for entry in answer.data]
    if encoding_format == "base64":
        vectors = [list(struct.unpack("<4f", base64.b64decode(vector))) for vector in vectors]
    else:
        CreateEmbeddingResponse.model_validate(answer.model_dump(), strict=True)
    assert vectors == [[2.0, 72.0, 105.0, THIRD], [3.0, 97.0, 99.0, THIRD]]
    assert [entry.index for entry in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 5)
    assert answer.model == "talking-model"


async def test_answers_the_official_client_that_blocks(gateway) -> None:
    def ask() -> list[float]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
            return client.embeddings.create(model="talking-model", input="Hi").data[0].embedding

    assert await asyncio.to_thread(ask) == [2.0, 72.0, 105.0, THIRD]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 260], [[97, 260]]),
        ([[97], [98, 98]], [[97], [98, 98]]),
    ],
)
async def test_inputs_of_all_kinds_reach_the_engine(
    gateway, engine: TalkingEngine, given: Any, expected: list[list[int]]
) -> None:
    assert (await ask(gateway, input=given)).status_code == 200
    assert [list(one.ids) for one in engine.embeds[0].inputs] == expected


async def test_settings_reach_the_engine(gateway, engine: TalkingEngine) -> None:
    await ask(gateway)
    await ask(gateway, pooling="last", normalize=False, user="me", dimensions=4, cache_salt="s")
    await ask(gateway, pooling="cls")
    await ask(gateway, pooling="mean")
    plain, set_up, cls, mean = engine.embeds
    assert not plain.HasField("normalize") and not plain.pooling
    assert set_up.HasField("normalize") and not set_up.normalize
    assert [set_up.pooling, cls.pooling, mean.pooling] == [POOLING_LAST_TOKEN, POOLING_CLS, POOLING_MEAN]
    assert set_up.cache_namespace and set_up.cache_namespace != plain.cache_namespace


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": [1, 300]}, "input", "invalid_value"),
        ({"input": ["a", "b" * 513]}, "input[1]", "context_length_exceeded"),
        ({"input": 5}, "input", "invalid_value"),
        ({"dimensions": 3}, "dimensions", "unsupported_parameter"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"pooling": "max"}, "pooling", "invalid_value"),
        ({"model": None}, "model", "invalid_value"),
    ],
)
async def test_what_cannot_be_embedded_is_refused(
    gateway, engine: TalkingEngine, fields: dict[str, Any], param: str, code: str
) -> None:
    answer = await ask(gateway, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert not engine.embeds


async def test_an_input_of_the_whole_context_fits(gateway) -> None:
    assert (await ask(gateway, input="b" * 512)).status_code == 200


async def test_the_engines_errors_name_the_input(gateway, engine: TalkingEngine) -> None:
    engine.embed_error = EngineError(
        grpc.StatusCode.INVALID_ARGUMENT, "inputs[3]: it is too odd", param="inputs[3]"
    )
    answer = await ask(gateway)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[3]"
    assert answer.json()["error"]["message"] == "input[3]: it is too odd"


async def test_an_engine_that_is_away_is_a_503(gateway, engine: TalkingEngine) -> None:
    engine.embed_error = EngineError(grpc.StatusCode.UNAVAILABLE, "10.0.0.1:50051 refused")
    answer = await ask(gateway)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "10.0.0.1" not in answer.text


async def test_another_model_is_a_404(gateway) -> None:
    assert (await ask(gateway, model="nobody/knows")).status_code == 404


async def test_many_vectors_come_in_order(gateway) -> None:
    answer = (await ask(gateway, input=[[1] * (1 + place % 7) for place in range(2048)])).json()
    assert [entry["embedding"][0] for entry in answer["data"]] == [1 + place % 7 for place in range(2048)]
    assert [entry["index"] for entry in answer["data"]] == list(range(2048))


async def test_a_client_that_leaves_ends_the_call(gateway, engine: TalkingEngine) -> None:
    engine.embed_delay_s = 600.0
    asking = asyncio.create_task(ask(gateway))
    await eventually(lambda: len(engine.embeds) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: engine.embeds_cancelled == 1)


async def test_the_request_is_measured(gateway) -> None:
    await ask(gateway, input=["Hi", "abc"])
    text = (await gateway.http.get("/metrics")).text
    labels = (
        'gen_ai_operation_name="embeddings",gen_ai_provider_name="rhizome",'
        'gen_ai_request_model="talking-model"'
    )
    assert f'gen_ai_server_request_duration_seconds_count{{error_type="",{labels}}} 1.0' in text
    assert 'rhizome_gateway_prompt_tokens_total{model="talking-model"} 5.0' in text


async def test_the_engine_call_is_a_span_below_the_request(gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    with OtlpSink() as sink:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", sink.endpoint)
        configure_tracing("rhizome-gateway")
        try:
            await ask(gateway, input=["Hi", "abc"])
        finally:
            shutdown_tracing()
        spans = {span.kind: span for span in sink.spans if "embeddings" in span.name}
    client, server = spans["CLIENT"], spans["SERVER"]
    assert (client.name, client.parent_span_id) == ("embeddings talking-model", server.span_id)
    assert client.attributes["gen_ai.operation.name"] == "embeddings"
    assert client.attributes["gen_ai.usage.input_tokens"] == 5


async def test_tokens_count_for_the_key(engine: TalkingEngine, start_gateway, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    digest = hashlib.sha256(b"sk-a").hexdigest()
    lines = ["[[keys]]", 'name = "a"', f'sha256 = "{digest}"', "tokens_per_minute = 12", 'models = ["talk*"]']
    keys.write_text("\n".join(lines))
    async with start_gateway(engine.target, keys_file=keys) as gateway:
        await gateway.becomes_ready()
        assert (await ask(gateway)).status_code == 401
        gateway.http.headers["x-api-key"] = "sk-a"
        first, second = await ask(gateway, input="abcdefgh"), await ask(gateway, input="abcdefgh")
        assert (await ask(gateway, model="other")).status_code == 403
    assert (first.status_code, second.status_code) == (200, 429)
    assert second.json()["error"]["code"] == "rate_limit_exceeded"
    assert int(first.headers["x-ratelimit-remaining-tokens"]) <= 4
    assert len(engine.embeds) == 1 and engine.embeds[0].tenant == "a"
