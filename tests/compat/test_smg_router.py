"""The SMG router from PyPI in front of two of our engines: it speaks vLLM's gRPC contract to them."""

from __future__ import annotations

import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tests.compat.conftest import DEMO

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.load_pb2 import Load
from rhizome_telemetry.exposition import read_samples
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.otlp_sink import OtlpSink
from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture

pytest.importorskip("smg_grpc_proto", reason="pip install smg-grpc-proto")

SMG = Path(sys.executable).with_name("smg")
PROGRAM = str(SMG) if SMG.exists() else shutil.which("smg")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs the SMG router: pip install smg")

LONG_S = 60.0


class SmgRouter(ProcessFixture):
    """`smg launch` before some engines."""

    def __init__(self, engines: list[EngineProcess], log_dir: Path, *arguments: str) -> None:
        assert PROGRAM is not None
        self.port, self.metrics_port = free_ports(2)
        command = [
            *(PROGRAM, "launch", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--prometheus-port", str(self.metrics_port), "--prometheus-host", "127.0.0.1"),
            *("--policy", "cache_aware", "--history-backend", "none", "--load-monitor-interval", "1"),
            *("--worker-urls", *(f"grpc://{one.target}" for one in engines), *arguments),
        ]
        super().__init__(command, log=log_dir / "smg.log", name="smg", environment={"HF_HUB_OFFLINE": "1"})
        self.url = f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = httpx.get(f"{self.url}/workers", timeout=5).json()["workers"]
        except (httpx.HTTPError, ValueError):
            return []
        return found

    def wait_for_workers(self, count: int) -> None:
        def all_there() -> bool:
            ready = [one for one in self.workers() if one.get("is_healthy")]
            return len(ready) == count

        self.wait_until(all_there, f"{count} workers are ready", LONG_S)

    def chat(self, question: str, **fields: Any) -> httpx.Response:
        body = {
            "model": "rhizome-demo",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 30,
            **fields,
        }
        headers = body.pop("headers", None)
        return self.post("/v1/chat/completions", body, headers)

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=LONG_S)

    def indexed_blocks(self) -> dict[str, int]:
        """How many blocks it believes each worker to hold."""
        page = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=LONG_S).content
        samples = read_samples(page, "smg_kv_index_blocks")["smg_kv_index_blocks"]
        return {one.labels()["worker"]: int(one.value) for one in samples}


def is_serving(engine: EngineProcess) -> bool:
    try:
        return load_of(engine).instance_id != ""
    except grpc.RpcError:
        return False


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    with OtlpSink() as one:
        yield one


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path_factory.mktemp("models") / "rhizome-demo"))


@pytest.fixture(scope="module")
def engines(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, sink: OtlpSink
) -> Iterator[list[EngineProcess]]:
    """Two engines whose checkpoint is out of the router's sight once they have loaded it."""
    folder = tmp_path_factory.mktemp("engines")
    options = ("--vllm-grpc", "on")
    with (
        EngineProcess(checkpoint, folder, *options, environment=sink.environment) as first,
        EngineProcess(checkpoint, folder, *options, environment=sink.environment) as second,
    ):
        for one in (first, second):
            one.wait_serving()
        checkpoint.rename(checkpoint.with_name("hidden"))
        yield [first, second]


@pytest.fixture(scope="module")
def router(engines: list[EngineProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmgRouter]:
    (nowhere,) = free_ports(1)
    tracing = ("--enable-trace", "--otlp-traces-endpoint", f"127.0.0.1:{nowhere}")
    with SmgRouter(engines, tmp_path_factory.mktemp("smg"), *tracing) as one:
        one.wait_for_workers(2)

        def has_tokenizer() -> bool:
            return one.chat("Hello", max_tokens=1).status_code == 200

        one.wait_until(has_tokenizer, "it has the tokenizer", LONG_S)
        yield one


def load_of(engine: EngineProcess) -> Load:
    with grpc.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)
        load: Load = stub.GetLoad(GetLoadRequest(), timeout=10).load
        return load


def test_both_engines_are_registered_with_what_they_say_of_themselves(
    router: SmgRouter, engines: list[EngineProcess]
) -> None:
    workers = {one["url"]: one for one in router.workers()}
    assert {*workers} == {f"grpc://{one.target}" for one in engines}
    for one in workers.values():
        assert (one["runtime_type"], one["connection_mode"]) == ("vllm", "grpc")
        assert one["model_id"] == "rhizome-demo"
        assert one["labels"]["max_context_length"] == "2048" and one["labels"]["page_size"] == "16"

    def has_loads() -> bool:
        loads = [one.get("engine_load") for one in router.workers()]
        return all(one and one["loads"][0]["max_total_num_tokens"] == 8192 for one in loads)

    router.wait_until(has_loads, "it was told the engines' loads", LONG_S)
    assert "KV event stream connected" in router.output


def test_a_question_is_answered_with_a_tokenizer_that_came_from_an_engine(router: SmgRouter) -> None:
    answer = router.chat("What is the capital of France?").json()
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "The capital of France is Paris."
    assert choice["finish_reason"] == "stop"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == 22 and usage["completion_tokens"] == 17


def test_a_stream_has_the_same_text_and_count(router: SmgRouter) -> None:
    whole = router.chat("What is the capital of Italy?").json()
    fields = {"stream": True, "stream_options": {"include_usage": True}}
    lines = router.chat("What is the capital of Italy?", **fields).text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    chunks = [json.loads(one) for one in data]
    text = "".join(one["delta"].get("content") or "" for chunk in chunks for one in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    usage = next(chunk["usage"] for chunk in chunks if chunk.get("usage"))
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_a_prompt_that_was_asked_before_comes_from_the_cache(router: SmgRouter) -> None:
    question = "What is the opposite of hot, and of cold, and of up, and of down, and of left?"
    cached = [
        router.chat(question).json()["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(4)
    ]
    prompt = router.chat(question).json()["usage"]["prompt_tokens"]
    # The template's first tokens may be cached already; all but the last one are, the second time.
    assert cached[0] < prompt - 16 and cached[1:] == [prompt - 1] * 3, "it goes where it was asked before"


def test_an_answer_in_json_conforms_to_its_schema(router: SmgRouter) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = router.chat("Is water wet?", response_format=wanted).json()
    assert json.loads(answer["choices"][0]["message"]["content"])["answer"] in ("yes", "no")


def test_log_probabilities_choices_and_stop_strings_come_through(router: SmgRouter) -> None:
    answer = router.chat("What is 2 plus 2?", logprobs=True, top_logprobs=2, n=2).json()
    assert [one["message"]["content"] for one in answer["choices"]] == ["2 + 2 = 4"] * 2
    told = answer["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in told) == "2 + 2 = 4"
    assert all(len(one["top_logprobs"]) == 2 and one["logprob"] > -0.1 for one in told)
    (choice,) = router.chat("What is the capital of France?", stop=["Paris"]).json()["choices"]
    assert choice["message"]["content"] == "The capital of France is "
    assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", "Paris")


def test_a_tool_that_must_be_called_is_called(router: SmgRouter) -> None:
    parameters = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {"name": "get_weather", "description": "The weather", "parameters": parameters}
    answer = router.chat(
        "What is the weather in Paris?",
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    ).json()
    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")


def test_its_other_apis_work_too(router: SmgRouter) -> None:
    model = {"model": "rhizome-demo", "temperature": 0}
    prompt = {**model, "prompt": "The capital of France is", "max_tokens": 8}
    assert router.post("/v1/completions", prompt).json()["choices"][0]["text"] == " Paris."
    question = {"role": "user", "content": "What is the capital of France?"}
    message = router.post("/v1/messages", {**model, "messages": [question], "max_tokens": 20}).json()
    assert message["content"][0]["text"] == "The capital of France is Paris."
    wanted = {"model": "rhizome-demo", "input": "hello"}
    (vector,) = router.post("/v1/embeddings", wanted).json()["data"]
    assert sum(value * value for value in vector["embedding"]) == pytest.approx(1.0, abs=1e-3)


def wait_for_exact_index(router: SmgRouter, engines: list[EngineProcess]) -> dict[str, int]:
    def is_exact() -> bool:
        held = {f"grpc://{one.target}": load_of(one).kv_pages_cached for one in engines}
        return router.indexed_blocks() == held

    router.wait_until(is_exact, "its index has the blocks that the engines hold", LONG_S)
    return router.indexed_blocks()


def test_it_knows_which_blocks_each_engine_holds(router: SmgRouter, engines: list[EngineProcess]) -> None:
    for n in range(12):
        assert router.chat(f"Spell the number {n}, please. " * 4, max_tokens=8).status_code == 200
    blocks = wait_for_exact_index(router, engines)
    assert min(blocks.values()) > 0 and sum(blocks.values()) > 24, "both engines were asked"


def test_an_error_of_the_engine_reaches_the_client(router: SmgRouter) -> None:
    answer = router.chat("word " * 3000)
    assert answer.status_code == 400, answer.text
    assert "2048" in answer.text


def test_a_client_that_goes_away_ends_its_request_in_the_engine(
    router: SmgRouter, engines: list[EngineProcess]
) -> None:
    def aborted() -> int:
        return sum(load_of(one).totals.aborted for one in engines)

    before = aborted()
    body = {
        "model": "rhizome-demo",
        "messages": [{"role": "user", "content": "Count from 1 to 1000."}],
        "max_tokens": 1900,
        "ignore_eos": True,
        "stream": True,
        "n": 4,
    }
    with httpx.stream("POST", f"{router.url}/v1/chat/completions", json=body, timeout=LONG_S) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    deadline = time.monotonic() + 30
    while aborted() < before + 4:
        assert time.monotonic() < deadline, [load_of(one) for one in engines]
        time.sleep(0.02)
    assert aborted() == before + 4
    for one in engines:
        load = load_of(one)
        assert (load.running_requests, load.waiting_requests, load.kv_pages_in_use) == (0, 0, 0)


def test_the_callers_trace_goes_on_in_the_engine(router: SmgRouter, sink: OtlpSink) -> None:
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    assert router.chat("Hello", headers=headers).status_code == 200
    spans = sink.wait_for(
        lambda spans: any(one.service == "rhizome-engine" and one.kind == "SERVER" for one in spans),
        trace_id=trace_id,
        timeout_s=30,
    )
    assert {one.trace_id for one in spans} == {trace_id}


def test_an_engine_that_dies_costs_no_request_that_comes_after(
    router: SmgRouter, engines: list[EngineProcess], checkpoint: Path
) -> None:
    checkpoint.with_name("hidden").rename(checkpoint)
    engines[0].core().kill()
    answers = [router.chat(f"What is {n} plus {n}?") for n in range(2, 8)]
    assert [one.status_code for one in answers] == [200] * len(answers), [one.text for one in answers]
    engines[0].wait_until(lambda: is_serving(engines[0]), "its core is there again", LONG_S)
    wait_for_exact_index(router, engines)
