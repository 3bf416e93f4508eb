"""`/metrics` and `/v1/metrics` of a running gateway."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.conftest import RunningGateway, eventually

from rhizome.engine.v1.engine_service_pb2 import GetLoadResponse
from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_telemetry.metrics import MetricsListener
from rhizome_testing.ports import free_port
from rhizome_testing.talking_engine import Hang, Say, TalkingEngine
from rhizome_testing.time_bounds import assert_within_async

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class BusyEngine(TalkingEngine):
    """Counts who asks for its load, and does not answer until it is told to."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.asked = 0
        self.answers = asyncio.Event()

    async def GetLoad(self, request: Any, context: Any) -> GetLoadResponse:  # noqa: N802
        self.asked += 1
        await self.answers.wait()
        return GetLoadResponse(load=self.load)


async def figures_with_the_engines(
    gateway: RunningGateway, wanted: Callable[[dict[str, Any]], bool] = lambda figures: True
) -> dict[str, Any]:
    """Who asks waits for the engine only a moment, and may get what the page's history just asked for."""
    figures: dict[str, Any] = {}

    async def are_there() -> bool:
        figures.update((await gateway.http.get("/v1/metrics")).json())
        return figures["engine"] is not None and wanted(figures)

    await eventually(are_there)
    return figures


async def scrape(gateway: RunningGateway) -> Series:
    return parsed((await gateway.http.get("/metrics")).text)


def parsed(text: str) -> Series:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str, **labels: str) -> float:
    """The sum of a family's values that have these labels."""
    return sum(
        value for (found, having), value in series.items() if found == name and labels.items() <= set(having)
    )


async def test_live_figures_are_those_of_the_host(gateway) -> None:
    answer = await gateway.http.get("/v1/metrics")
    assert answer.headers["cache-control"] == "no-store"
    figures = answer.json()
    assert 0 <= figures["cpu"]["utilization_percent"] <= 100 and figures["cpu"]["core_count"] >= 1
    memory = figures["memory"]
    assert abs(memory["used_mb"] + memory["available_mb"] - memory["total_mb"]) <= 1
    gpu = figures["gpu"]
    assert gpu is None or {
        "device_id",
        "utilization_percent",
        "memory_used_mb",
        "memory_total_mb",
        "temperature_celsius",
    } <= set(gpu)
    assert abs(figures["timestamp"] - time.time()) < 10 and isinstance(figures["timestamp"], int)


async def test_live_figures_show_what_the_engine_tells_and_null_for_the_rest(
    gateway, engine: TalkingEngine
) -> None:
    load = engine.load
    load.running_requests, load.waiting_requests = 3, 0
    load.kv_pages_total, load.kv_pages_in_use = 200, 50
    load.totals.received, load.totals.completed = 10, 4
    load.totals.cache_hit_tokens, load.totals.cache_miss_tokens = 30, 70
    load.totals.queue_time.FromMilliseconds(20)
    figures = await figures_with_the_engines(gateway, lambda found: found["engine"]["running_requests"] == 3)
    assert (figures["engine"]["total_requests"], figures["engine"]["completed_requests"]) == (10, 4)
    assert figures["engine"]["tokens_per_second"] is None
    assert figures["cache"]["hit_rate"] == 0.3
    assert figures["cache"]["kv_utilization_percent"] == 25
    assert figures["cache"]["pages_cached"] is None
    assert figures["queue"] == {
        "waiting_requests": 0,
        "waiting_tokens": None,
        "refused_requests": 0,
        "avg_queue_time_ms": 5,  # of the four that ended
    }


async def test_an_engine_that_tells_nothing_is_not_idle(gateway, engine: TalkingEngine) -> None:
    figures = await figures_with_the_engines(gateway)
    for section in ("engine", "cache", "queue"):
        assert set(figures[section].values()) == {None}


async def test_recent_means_are_preferred(gateway, engine: TalkingEngine) -> None:
    engine.load.totals.completed = 1
    engine.load.totals.queue_time.FromMilliseconds(1000)
    engine.load.mean_times.queue.FromMilliseconds(7)
    await figures_with_the_engines(gateway, lambda found: found["queue"]["avg_queue_time_ms"] == 7)


async def test_live_figures_do_not_wait_for_an_engine(start_gateway) -> None:
    async with (
        BusyEngine() as busy,
        start_gateway(busy.target) as waiting,
        start_gateway(f"127.0.0.1:{free_port()}") as alone,
    ):
        await waiting.becomes_ready()
        for gateway in (waiting, alone):

            async def look(gateway: RunningGateway = gateway) -> float:
                began = time.monotonic()
                figures = (await gateway.http.get("/v1/metrics")).json()
                took = time.monotonic() - began
                assert figures["engine"] is figures["cache"] is figures["queue"] is None
                assert figures["memory"]["total_mb"] > 0
                return took

            await assert_within_async(0.5, look)  # asking takes a second
        assert not (await alone.http.get("/v1/metrics")).json()["gateway"]["ready"]
        busy.load.running_requests = 1
        busy.answers.set()

        async def is_shown() -> bool:
            engine = (await waiting.http.get("/v1/metrics")).json()["engine"]
            return engine is not None and engine["running_requests"] == 1

        await eventually(is_shown)


async def test_many_who_poll_cost_the_engine_one_question(start_gateway) -> None:
    async with BusyEngine() as engine, start_gateway(engine.target) as gateway:
        await gateway.becomes_ready()
        began = time.monotonic()
        await asyncio.gather(*(gateway.http.get("/v1/metrics") for _ in range(30)))
        took = time.monotonic() - began
        assert 1 <= engine.asked <= 1 + int(took)  # it is given up after a second, and asked again
        engine.answers.set()


async def test_requests_are_counted_by_route_and_not_by_path(gateway) -> None:
    for path in ("/v1/models/some/name", "/v1/models/talking-model", "/nowhere/1", "/nowhere/2", "/health"):
        await gateway.http.get(path)
    await gateway.http.request("PROPFIND", "/health")
    series = await scrape(gateway)
    name = "http_server_request_duration_seconds_count"

    def count(method: str, route: str, status: int) -> float:
        labels = {
            "http_request_method": method,
            "http_route": route,
            "http_response_status_code": str(status),
        }
        return total(series, name, **labels)

    assert count("GET", "/v1/models/{model_id:path}", 404) == 1
    assert count("GET", "/v1/models/{model_id:path}", 200) == 1
    assert count("GET", "unknown", 404) == 2
    assert count("GET", "/health", 200) == 1
    assert count("_OTHER", "/health", 405) == 1
    assert not [labels for found, labels in series if "nowhere" in str(labels) or "PROPFIND" in str(labels)]
    assert total(series, "http_server_active_requests") == 1  # the scrape itself
    assert total(series, "rhizome_gateway_ready") == 1


async def test_a_client_that_left_is_a_499(gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("a"), Hang()]
    body = {"model": "talking-model", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        assert total(await scrape(gateway), "http_server_active_requests") == 2

    async def is_counted() -> bool:
        series = await scrape(gateway)
        left = {"http_route": "/v1/chat/completions", "http_response_status_code": "499"}
        return (
            total(series, "http_server_request_duration_seconds_count", **left) == 1
            and total(series, "gen_ai_server_request_duration_seconds_count", error_type="cancelled") == 1
            and total(series, "http_server_active_requests") == 1
        )

    await eventually(is_counted)


async def test_generations_are_counted_under_the_served_name(start_gateway, engine: TalkingEngine) -> None:
    engine.script = lambda prompt: [Say("Hello!")]
    async with start_gateway(engine.target, model_alias=("*",)) as gateway:
        await gateway.becomes_ready()
        for stream in (True, False):
            assert (await gateway.chat(model="anything", stream=stream)).status_code == 200
        series = await scrape(gateway)
        operation = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "talking-model"}
        assert total(series, "gen_ai_server_time_to_first_token_seconds_count", **operation) == 2
        assert total(series, "gen_ai_server_request_duration_seconds_count", error_type="", **operation) == 2
        assert total(series, "rhizome_gateway_generated_tokens_total", model="talking-model") == 12
        prompt_tokens = sum(len(submit.request.token_ids.ids) for submit in engine.submits)
        assert total(series, "rhizome_gateway_prompt_tokens_total", model="talking-model") == prompt_tokens
        assert total(series, "rhizome_gateway_cache_hit_tokens_total") == 6
        assert total(series, "rhizome_gateway_answers_total", finish_reason="stop") == 2
        assert not [labels for _, labels in series if "anything" in str(labels)]

        async def is_shown() -> bool:
            figures = (await gateway.http.get("/v1/metrics")).json()["gateway"]
            return bool(
                figures["requests_per_second"] and figures["time_to_first_token_ms"]["p95"] is not None
            )

        await eventually(is_shown)


async def test_the_page_of_numbers_is_one_that_prometheus_takes(gateway) -> None:
    await gateway.chat()
    answer = await gateway.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(answer.text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(family.documentation for family in families)
    assert {"process_resident_memory_bytes", "http_server_request_duration_seconds"} <= set(names)
    if promtool := shutil.which("promtool"):
        check = await asyncio.create_subprocess_exec(
            promtool, "check", "metrics", stdin=subprocess.PIPE, stderr=subprocess.PIPE
        )
        _, complaints = await check.communicate(answer.content)
        assert (check.returncode, complaints) == (0, b"")


def test_a_second_listener_serves_the_same_numbers() -> None:
    metrics = GatewayMetrics()
    metrics.refused("overloaded")
    listener = MetricsListener("127.0.0.1", 0, metrics)
    try:
        served = parsed(_fetch(f"http://127.0.0.1:{listener.port}/metrics"))
        assert total(served, "rhizome_gateway_requests_refused_total", reason="overloaded") == 1
        assert total(served, "process_resident_memory_bytes") > 0
    finally:
        listener.close()


def test_reasons_that_somebody_makes_up_do_not_become_labels_for_ever() -> None:
    metrics = GatewayMetrics()
    for number in range(1000):
        metrics.ignored_parameter(f"parameter_{number}")
    series = parsed(metrics.text().decode())
    found = [labels for name, labels in series if name == "rhizome_gateway_ignored_parameters_total"]
    assert len(found) == 101
    assert total(series, "rhizome_gateway_ignored_parameters_total", parameter="other") == 900


def _fetch(url: str) -> str:
    with urlopen(url, timeout=10) as response:
        return str(response.read().decode())
