import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import AsyncExitStack

import httpx
import pytest
from tests.gateway.conftest import eventually

from rhizome_gateway.__main__ import main
from rhizome_gateway.settings import GatewaySettings
from rhizome_testing.ports import free_port
from rhizome_testing.talking_engine import Hang, Pause, Say, TalkingEngine

BODY = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}]}


async def test_the_gateway_may_start_before_any_engine(start_gateway) -> None:
    port = free_port()
    async with start_gateway(f"127.0.0.1:{port}") as gateway:
        assert (await gateway.http.get("/health")).json() == {"status": "healthy"}
        ready = await gateway.http.get("/ready")
        assert (ready.status_code, ready.json()["status"], ready.json()["model_loaded"]) == (
            503,
            "not_ready",
            False,
        )
        for answer in (await gateway.chat(), await gateway.http.get("/v1/models"), ready):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_unavailable"
            assert int(answer.headers["retry-after"]) >= 1
        async with TalkingEngine(address=f"127.0.0.1:{port}"):
            await gateway.becomes_ready()
            assert (await gateway.http.get("/ready")).json() == {"status": "ready", "model_loaded": True}
            assert (await gateway.chat()).status_code == 200

        async def is_not_ready() -> bool:
            return (await gateway.http.get("/ready")).status_code == 503

        await eventually(is_not_ready)
        assert (await gateway.http.get("/health")).status_code == 200


async def test_nothing_about_the_inside_is_told(start_gateway, caplog) -> None:
    async with AsyncExitStack() as stack:
        engine = TalkingEngine(script=lambda prompt: [Say("a"), Hang()])
        await engine.__aenter__()
        gateway = await stack.enter_async_context(start_gateway(engine.target))
        await gateway.becomes_ready()
        asked = [asyncio.create_task(gateway.chat(stream=stream)) for stream in (True, False)]
        await eventually(lambda: len(engine.submits) == 2)
        await engine.__aexit__(None, None, None)
        answers = [await task for task in asked] + [await gateway.chat()]
    assert [answer.status_code for answer in answers[1:]] == [503, 503]
    assert "engine_unavailable" in answers[0].text
    for answer in answers:
        assert "127.0.0.1" not in answer.text and "calls" not in answer.text
    told = [record for record in caplog.records if engine.target in record.getMessage()]
    assert answers[-1].headers["x-request-id"] in {getattr(record, "request_id", "") for record in told}


async def test_another_model_is_noticed(gateway, engine: TalkingEngine) -> None:
    config = json.loads(engine.files["tokenizer_config.json"])
    engine.files["tokenizer_config.json"] = json.dumps(config | {"chat_template": "other"}).encode()
    engine.model = "org/other-model"

    async def knows_it() -> bool:
        return (await gateway.http.get("/v1/models")).json()["data"][0]["id"] == engine.model

    await eventually(knows_it)
    assert (await gateway.chat()).status_code == 404
    assert (await gateway.chat(model="org/other-model")).status_code == 200
    assert engine.prompts == ["other"]


async def test_models_are_described(gateway, engine: TalkingEngine) -> None:
    models = await gateway.openai.models.list()
    assert [model.id for model in models.data] == ["talking-model"]
    model = await gateway.openai.models.retrieve("talking-model")
    assert (model.object, model.owned_by) == ("model", "rhizome")
    assert model.created > 0
    extra = model.model_extra or {}
    assert extra["max_model_len"] == 512
    assert extra["default_sampling"] == {"temperature": 0.5}
    missing = await gateway.http.get("/v1/models/org/none")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_documentation_names_endpoints_and_fields(gateway) -> None:
    assert "swagger" in (await gateway.http.get("/docs")).text.lower()
    document = (await gateway.http.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/models", "/v1/models/{model_id}", "/health", "/ready"} <= set(
        document["paths"]
    )
    schemas = document["components"]["schemas"]
    assert {"messages", "temperature", "stop"} <= set(schemas["ChatCompletionRequest"]["properties"])
    for reference in _references(document):
        part = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def _references(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if "$ref" in node else []
        return own + [name for value in node.values() for name in _references(value)]
    return [name for value in node for name in _references(value)] if isinstance(node, list) else []


async def test_a_bug_is_a_plain_500(gateway, engine: TalkingEngine, monkeypatch, caplog) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("rhizome_gateway.openai.chat.plan.plan_choices", broken)
    answer = await gateway.chat()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    assert "secret detail" in caplog.text

    monkeypatch.undo()
    monkeypatch.setattr("rhizome_gateway.openai.chat.rendering._message", broken)
    answer = await gateway.chat()
    assert (answer.status_code, "secret" in answer.text) == (500, False)
    monkeypatch.undo()
    assert (await gateway.chat()).status_code == 200


async def test_the_command_serves_and_drains_on_sigterm() -> None:
    port, metrics_port = free_port(), free_port()
    async with TalkingEngine() as engine:
        engine.script = lambda prompt: [Say("a"), Pause(0.5), Say("b")]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rhizome_gateway", "--port", str(port), "--engine", engine.target,
            "--metrics-port", str(metrics_port),
            stderr=subprocess.PIPE, env=os.environ | {"RHIZOME_GATEWAY_GRACEFUL_SHUTDOWN_S": "5"},
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:

                async def is_ready() -> bool:
                    try:
                        return (await client.get("/ready")).status_code == 200
                    except httpx.TransportError:
                        return False

                await eventually(is_ready, within_s=30)
                numbers = await client.get(f"http://127.0.0.1:{metrics_port}/metrics")
                assert "rhizome_gateway_ready 1.0" in numbers.text
                assert numbers.text.count("# HELP process_resident_memory_bytes") == 1
                asking = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
                await eventually(lambda: len(engine.submits) == 1)
                process.send_signal(signal.SIGTERM)
                answer = await asking
                assert answer.json()["choices"][0]["message"]["content"] == "ab"
                _, log = await asyncio.wait_for(process.communicate(), 30)
                assert process.returncode == 0, log
                assert b"Traceback" not in log
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def test_what_does_not_end_in_time_is_cancelled(engine: TalkingEngine, start_gateway) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    async with start_gateway(engine.target, graceful_shutdown_s=0) as gateway:
        await gateway.becomes_ready()
        client = httpx.AsyncClient(base_url=gateway.url, trust_env=False)
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
        await eventually(lambda: len(engine.submits) == 1)
    await eventually(lambda: len(engine.cancelled) == 1)
    await asyncio.gather(asking, return_exceptions=True)
    await client.aclose()


async def test_an_answer_that_takes_too_long_is_a_timeout(engine: TalkingEngine, start_gateway) -> None:
    engine.script = lambda prompt: [Hang()]
    async with start_gateway(engine.target, request_timeout_s=0.1) as gateway:
        await gateway.becomes_ready()
        answer = await gateway.chat()
        assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")
        assert engine.submits[0].HasField("timeout")


def test_flags_win_over_variables_and_long_names_over_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("HOST", "0.0.0.0")
    assert (GatewaySettings().port, GatewaySettings().host) == (1, "0.0.0.0")
    monkeypatch.setenv("RHIZOME_GATEWAY_PORT", "2")
    assert GatewaySettings().port == 2
    assert GatewaySettings(port=3).port == 3


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "x"],
        ["--log-level", "LOUD"],
        ["--max-choices", "0"],
        ["--tool-parser", "telepathy"],
        ["--reasoning-parser", "telepathy"],
        ["--engine-tls-cert", "nowhere.pem"],
        ["--engine-token-file", "nowhere.txt"],
        ["--host", "0.0.0.0"],
        ["--keys-file", "nowhere.toml"],
    ],
)
@pytest.mark.usefixtures("own_logging")
def test_a_wrong_flag_says_what_is_wrong_and_exits_2(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("rhizome-gateway: ")


async def test_a_stream_that_does_not_end_in_time_says_so(engine: TalkingEngine, start_gateway) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(start_gateway(engine.target, graceful_shutdown_s=0))
        await gateway.becomes_ready()
        client = httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=10)
        async with client.stream("POST", "/v1/chat/completions", json=BODY | {"stream": True}) as answer:
            lines = answer.aiter_lines()
            while '"a"' not in await anext(lines):
                pass
            await stack.aclose()
            rest = [line async for line in lines if line]
    await client.aclose()
    assert '"engine_unavailable"' in rest[-2] and rest[-1] == "data: [DONE]"
