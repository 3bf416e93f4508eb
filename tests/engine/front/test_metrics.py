"""`/metrics` of a real engine, read with Prometheus's own parser, beside its own `GetLoad`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import grpc.aio
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest, GetLoadResponse
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome.engine.v1.load_pb2 import Load, RequestHistograms, RequestTotals
from rhizome_engine.core.durations import to_seconds
from rhizome_engine.front.metrics import _COUNTERS, _GAUGES, _GEN_AI_HISTOGRAMS, _HISTOGRAMS
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.ports import free_ports

INTERVAL_S = 0.05


@pytest.fixture(scope="module")
def metrics_port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def engine(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, metrics_port: int
) -> Iterator[EngineProcess]:
    arguments = (
        *("--metrics-port", str(metrics_port), "--schedule-interval-ms", str(INTERVAL_S * 1e3)),
        *("--overlap", "on", "--fairness", "false", "--policy", "lpm"),
    )
    with EngineProcess(checkpoint, tmp_path_factory.mktemp("measured"), *arguments) as one:
        one.wait_serving()
        yield one


async def scrape(port: int) -> dict[str, Metric]:
    """Families by name."""

    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
            assert response.headers["Content-Type"].startswith("text/plain")
            return response.read().decode()

    text = await asyncio.to_thread(read)
    return {family.name: family for family in text_string_to_metric_families(text)}


def request(max_tokens: int, text: str = "Hello, world, and all who are in it") -> GenerateRequest:
    message = GenerateRequest(text=text)
    message.stop.max_tokens = max_tokens
    message.stop.ignore_eos = True
    return message


def test_every_number_of_the_contract_has_a_metric() -> None:
    unmeasured = {"instance_id", "sequence", "totals", "mean_times"}
    assert {field for _, field, _ in _GAUGES} == set(Load.DESCRIPTOR.fields_by_name) - unmeasured
    assert {field for _, field, _ in _COUNTERS} == set(RequestTotals.DESCRIPTOR.fields_by_name)
    counted = {field for _, field, _ in (*_HISTOGRAMS, *_GEN_AI_HISTOGRAMS)} | {"duration_seconds"}
    assert counted == set(RequestHistograms.DESCRIPTOR.fields_by_name)


def test_the_page_of_metrics_names_every_one() -> None:
    page = (Path(__file__).parents[3] / "docs" / "engine-settings.md").read_text()
    names = [name for name, _, _ in (*_GAUGES, *_HISTOGRAMS)] + [f"{name}_total" for name, _, _ in _COUNTERS]
    assert not [name for name in names if f"`{name}`" not in page]


async def test_metrics_and_get_load_are_one_truth(engine: EngineProcess, metrics_port: int) -> None:
    async with grpc.aio.insecure_channel(engine.target) as channel:
        stub: Any = EngineServiceStub(channel)
        for _ in range(2):
            last = [event async for event in stub.Generate(request(4))][-1]
        waited = to_seconds(last.finished.timings.queue_time)
        assert waited >= INTERVAL_S  # an idle engine waits for company
        call = stub.Generate(request(1900))
        assert (await call.read()).HasField("started")
        for _ in range(2):  # so that there is a gap between two of its tokens
            assert (await call.read()).HasField("delta")
        call.cancel()
        answer = await until_idle(stub)
        families = await scrape(metrics_port)
    labels = {"model": engine.model.name}
    for name, field, text in _GAUGES:
        if field == "generated_tokens_per_second":
            continue  # a moving window
        family = families[f"rhizome_engine_{name}"]
        assert (family.type, family.documentation) == ("gauge", text)
        assert [(one.labels, one.value) for one in family.samples] == [(labels, getattr(answer.load, field))]
    for name, field, text in _COUNTERS:
        family = families[f"rhizome_engine_{name}"]
        assert (family.type, family.documentation) == ("counter", text)
        value = getattr(answer.load.totals, field)
        number = to_seconds(value) if field.endswith("_time") else value
        assert [(one.name, one.labels, one.value) for one in family.samples] == [
            (f"rhizome_engine_{name}_total", labels, number)
        ]
    assert answer.load.totals.completed == 2
    assert answer.load.totals.aborted == 1
    for name, field, _ in _HISTOGRAMS:
        family = families[f"rhizome_engine_{name}"]
        assert family.type == "histogram"
        values = {one.name.removeprefix(family.name): one.value for one in family.samples}
        reported = getattr(answer.histograms, field)
        assert values["_sum"] == pytest.approx(reported.sum)
        assert values["_count"] == sum(reported.counts)
        if field != "inter_token_seconds":
            assert values["_count"] == 3
    gaps = answer.load.totals.generated_tokens - 3
    assert sum(answer.histograms.inter_token_seconds.counts) == gaps > 6
    gen_ai = {"gen_ai_operation_name": "text_completion", "gen_ai_provider_name": "rhizome"}
    gen_ai["gen_ai_request_model"] = engine.model.name
    for name, field, _ in _GEN_AI_HISTOGRAMS:
        counts = [one for one in families[name].samples if one.name == f"{name}_count"]
        reported = getattr(answer.histograms, field)
        assert [(one.labels, one.value) for one in counts] == [(gen_ai, sum(reported.counts))]
    duration = "gen_ai_server_request_duration_seconds"
    ended = {
        (one.labels["rhizome_finish_reason"], one.labels["error_type"]): one.value
        for one in families[duration].samples
        if one.name == f"{duration}_count" and gen_ai.items() <= one.labels.items()
    }
    assert ended == {("length", ""): 2, ("", "cancelled"): 1}
    waiting = families["rhizome_engine_request_queue_seconds"]
    within = {one.labels["le"]: one.value for one in waiting.samples if one.name.endswith("_bucket")}
    assert (within["0.02"], within["+Inf"]) == (0, 3)
    assert families["process_resident_memory_bytes"].samples[0].value > 0


async def test_a_lost_core_is_down_and_comes_back(engine: EngineProcess, metrics_port: int) -> None:
    os.kill(engine.core().pid, signal.SIGKILL)
    await until_up(metrics_port, 0.0)
    assert "rhizome_engine_steps" not in await scrape(metrics_port)
    await until_up(metrics_port, 1.0)


async def until_up(port: int, wanted: float) -> None:
    deadline = time.monotonic() + 60
    while (await scrape(port))["rhizome_engine_up"].samples[0].value != wanted:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def until_idle(stub: Any) -> GetLoadResponse:
    deadline = time.monotonic() + 30
    while True:
        answer: GetLoadResponse = await stub.GetLoad(GetLoadRequest())
        if answer.load.running_requests == 0 and answer.load.totals.aborted:
            return answer
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
