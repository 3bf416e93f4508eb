"""How numbers are gathered: meters, quantiles, rates, background reads, counts of several workers."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from rhizome.common.v1.common_pb2 import Timings
from rhizome_gateway.generation.events import Ended
from rhizome_gateway.metrics.activity import Activity, Sample
from rhizome_gateway.metrics.buckets import INTER_TOKEN_S, MergingHistogram, quantile
from rhizome_gateway.metrics.host import Gpus
from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_gateway.metrics.refreshed import Refreshed
from rhizome_gateway.metrics.workers import shared_counts

SECONDS = st.floats(0.0001, 5, allow_nan=False)


def values(metrics: GatewayMetrics) -> dict[str, float]:
    """Sums of all samples that are no buckets, by name."""
    found: dict[str, float] = {}
    for family in metrics.collect():
        for sample in family.samples:
            if not sample.name.endswith("_bucket"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


@given(gaps=st.lists(SECONDS, min_size=1, max_size=150), tokens=st.integers(1, 4))
@settings(deadline=None)
def test_every_gap_and_every_token_counts_once(gaps: list[float], tokens: int) -> None:
    metrics = GatewayMetrics()
    meter = metrics.generation("chat", "a", 100.0)
    choice = meter.choice()
    now = 101.0
    choice.observe_tokens(now, tokens)
    for gap in gaps:
        now += gap
        choice.observe_tokens(now, tokens)
    generated = tokens * (len(gaps) + 1)
    choice.finish(Ended("stop", 5, 0, generated, 0, Timings()))
    meter.close(now)
    meter.close(now, "cancelled")
    found = values(metrics)
    assert found["rhizome_gateway_inter_token_latency_seconds_count"] == len(gaps)
    assert found["rhizome_gateway_inter_token_latency_seconds_sum"] == pytest.approx(sum(gaps))
    assert found["rhizome_gateway_generated_tokens_total"] == generated
    assert found["gen_ai_server_time_to_first_token_seconds_sum"] == 1.0
    assert found["gen_ai_server_request_duration_seconds_count"] == 1
    mean = found["gen_ai_server_time_per_output_token_seconds_sum"]
    assert mean == pytest.approx(sum(gaps) / (generated - 1))


def test_choices_have_gaps_of_their_own_and_one_first_token() -> None:
    metrics = GatewayMetrics()
    meter = metrics.generation("chat", "a", 10.0)
    first, second = meter.choice(), meter.choice()
    for choice, now in ((first, 11.0), (second, 13.0), (first, 12.0), (second, 14.0)):
        choice.observe_tokens(now, 1)
    meter.close(15.0, "cancelled")
    found = values(metrics)
    assert found["gen_ai_server_time_to_first_token_seconds_sum"] == 1.0
    assert found["rhizome_gateway_inter_token_latency_seconds_sum"] == 2.0
    assert found["rhizome_gateway_generated_tokens_total"] == 4  # also of what nobody finished


@given(seconds=st.lists(SECONDS, max_size=60))
def test_merged_values_are_as_if_each_had_been_observed(seconds: list[float]) -> None:
    registries = [CollectorRegistry(), CollectorRegistry()]
    merging = MergingHistogram("a_seconds", "a", buckets=INTER_TOKEN_S, registry=registries[0])
    plain = Histogram("a_seconds", "a", buckets=INTER_TOKEN_S, registry=registries[1])
    edges = (*INTER_TOKEN_S, float("inf"))
    counts = [0] * len(edges)
    for value in seconds:
        plain.observe(value)
        counts[next(i for i, edge in enumerate(edges) if value <= edge)] += 1
    merging.merge(counts, sum(seconds))
    merged, observed = (
        [(sample.name, sample.labels.get("le"), pytest.approx(sample.value)) for sample in samples]
        for samples in ([s for f in registry.collect() for s in f.samples] for registry in registries)
    )
    assert merged == observed


@given(counts=st.lists(st.integers(0, 20), min_size=4, max_size=4), part=st.integers(1, 64))
def test_a_quantile_lies_in_the_bucket_of_the_value_it_stands_for(counts: list[int], part: int) -> None:
    bounds, share = (1.0, 2.0, 4.0), part / 64  # exact, so that both sides round alike
    found = quantile(share, bounds, counts)
    if not sum(counts):
        assert found is None
        return
    ends = list(accumulate(counts))
    bucket = next(index for index, end in enumerate(ends) if end >= share * sum(counts))
    lower, upper = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 4.0))[bucket]
    assert found is not None
    assert lower <= found <= upper
    assert found <= (quantile(1.0, bounds, counts) or 0)


def sample(at: float, requests: float, slow: int) -> Sample:
    none = [0.0] * 21
    return Sample(at, requests, 100 * requests, none, [0.0] * 10 + [float(slow)] + [0.0] * 11)


def test_rates_are_of_the_last_seconds_and_quantiles_of_the_last_minute() -> None:
    activity = Activity()
    assert activity.until(sample(0, 5, 0))["requests_per_second"] is None
    for second in range(0, 125, 5):
        activity.add(sample(second, second * 2.0 if second < 100 else 200.0, 7 if second >= 30 else 0))
    figures = activity.until(sample(120, 230, 7))
    assert figures["requests_per_second"] == 3.0  # 30 since 110
    assert figures["tokens_per_second"] == 300.0
    long_ago = {"count": 0, "p50": None, "p95": None}
    assert figures["inter_token_latency_ms"] == long_ago  # as the slow ones are
    recent = activity.until(sample(121, 230, 10))["inter_token_latency_ms"]
    assert 25 <= recent["p50"] <= recent["p95"] <= 30
    assert figures["time_to_first_token_ms"]["p50"] is None
    exact = activity.until(sample(121, 230, 10), [0.125])["time_to_first_token_ms"]
    assert exact == {"count": 1, "p50": 125.0, "p95": 125.0}  # the one that there was, and no bucket's middle
    assert activity.until(sample(121, 230, 10), [0.3, 0.1, 0.2])["time_to_first_token_ms"]["p50"] == 200.0


def read(*results: int | Exception) -> tuple[Callable, list[int]]:
    reads: list[int] = []

    async def one() -> int:
        reads.append(1)
        await asyncio.sleep(0)
        result = results[min(len(reads), len(results)) - 1]
        if isinstance(result, Exception):
            raise result
        return result

    return one, reads


async def test_who_asks_together_is_answered_by_one_read() -> None:
    reader, reads = read(1)
    value = Refreshed(reader, fresh_s=60, stale_s=60)
    assert await asyncio.gather(*(value.latest() for _ in range(20))) == [1] * 20
    assert await value.latest() == 1
    assert len(reads) == 1


async def test_a_slow_read_is_not_waited_for_and_answers_later() -> None:
    arrived = asyncio.Event()

    async def slow() -> int:
        await arrived.wait()
        return 7

    value = Refreshed(slow, wait_s=0.01)
    began = time.monotonic()
    assert await value.latest() is None
    assert time.monotonic() - began < 1
    arrived.set()
    await asyncio.sleep(0)
    assert await value.latest() == 7
    await value.close()


async def test_an_old_value_is_none() -> None:
    reads, go, came = [], asyncio.Event(), asyncio.Event()

    async def reader() -> int:
        reads.append(1)
        await go.wait()
        came.set()
        return 1

    value = Refreshed(reader, fresh_s=0, wait_s=0, stale_s=0.05)
    assert await value.latest() is None
    go.set()
    await came.wait()
    await asyncio.sleep(0.1)
    go.clear()
    assert await value.latest() is None  # it came, and is old by now
    await value.close()
    assert len(reads) == 2


async def test_a_bug_reaches_who_asks_and_the_next_tries_again() -> None:
    reader, _ = read(RuntimeError("broken"), 3)
    value = Refreshed(reader, fresh_s=0)
    with pytest.raises(RuntimeError, match="broken"):
        await value.latest()
    assert await value.latest() == 3


async def test_a_host_without_gpus_is_asked_once(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    asked = []

    def missing() -> None:
        asked.append(1)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    gpus = Gpus()
    assert [await gpus.read() for _ in range(3)] == [[], [], []]
    assert len(asked) == 1 and not caplog.records


async def test_a_gpu_that_is_lost_is_reported_once(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    def lost(index: int) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 1)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lost)
    gpus = Gpus()
    assert [await gpus.read() for _ in range(3)] == [[], [], []]
    assert len(caplog.records) == 1


WORKER = """
import sys
from rhizome_gateway.metrics.instruments import GatewayMetrics
metrics = GatewayMetrics()
meter = metrics.generation("chat", "a", 0.0)
choice = meter.choice()
choice.observe_tokens(1.0, 3)
choice.observe_tokens(1.02, 3)
meter.close(2.0)
metrics.http_begun()
metrics.http_begun()
metrics.http_ended("GET", "/health", 200, 0.001)
print("counted", flush=True)
sys.stdin.read()
"""


def start_worker() -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None and worker.stdout.readline() == "counted\n"
    return worker


def test_workers_count_as_one_and_what_a_dead_one_did_stays() -> None:
    with shared_counts() as folder:
        workers = [start_worker(), start_worker()]
        try:
            metrics = GatewayMetrics()  # any process can read them
            assert metrics.shared
            found = values(metrics)
            assert found["rhizome_gateway_generated_tokens_total"] == 12
            assert found["http_server_request_duration_seconds_count"] == 2
            assert found["http_server_active_requests"] == 2
            activity = Sample.of(metrics.activity(), 0.0)
            assert (activity.requests, activity.tokens, sum(activity.inter_token)) == (2, 12, 2)
            workers[0].kill()
            workers[0].wait()
            found = values(metrics)
            assert found["rhizome_gateway_generated_tokens_total"] == 12
            assert found["http_server_active_requests"] == 1
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
    assert not Path(folder).exists()
    assert not GatewayMetrics().shared
