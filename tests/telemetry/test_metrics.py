"""What Prometheus reads, over a real socket, with Prometheus's own parser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rhizome_telemetry.metrics import Metric, MetricsListener, OnLoop, counter, gauge, histogram

LABELS = {"model": 'a "quoted" name'}


class Snapshot:
    def __init__(self) -> None:
        self.requests = 1

    def collect(self) -> Iterable[Metric]:
        yield counter("test_requests", "Requests.", self.requests, LABELS)
        yield gauge("test_temperature_celsius", "Degrees.", -1.5, LABELS)
        yield histogram("test_wait_seconds", "Seconds.", (0.1, 1.0), (2, 0, 3), 7.5, LABELS)


@pytest.fixture
def snapshot() -> Snapshot:
    return Snapshot()


@pytest.fixture
def listener(snapshot: Snapshot) -> Iterator[MetricsListener]:
    one = MetricsListener("127.0.0.1", 0, snapshot)
    yield one
    one.close()


def scrape(port: int) -> dict[tuple[str, str], float]:
    """Values by sample name and bucket."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in families
        for sample in family.samples
        if not family.name.startswith("test_") or sample.labels["model"] == LABELS["model"]
    }


def test_each_scrape_reads_the_numbers_of_its_moment(listener: MetricsListener, snapshot: Snapshot) -> None:
    assert scrape(listener.port)["test_requests_total", ""] == 1
    snapshot.requests = 2
    values = scrape(listener.port)
    assert values["test_requests_total", ""] == 2
    assert values["test_temperature_celsius", ""] == -1.5
    assert values["process_resident_memory_bytes", ""] > 0


def test_buckets_are_cumulative_and_end_with_all_values(listener: MetricsListener) -> None:
    values = scrape(listener.port)
    buckets = {edge: value for (name, edge), value in values.items() if name == "test_wait_seconds_bucket"}
    assert buckets == {"0.1": 2, "1.0": 2, "+Inf": 5}
    assert (values["test_wait_seconds_count", ""], values["test_wait_seconds_sum", ""]) == (5, 7.5)


def test_scrapers_that_prefer_openmetrics_find_names_with_a_colon() -> None:
    class Named:
        def collect(self) -> Iterable[Metric]:
            yield gauge("vllm:num_requests_running", "Requests.", 3, {})

    prometheus = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"}
    listener = MetricsListener("127.0.0.1", 0, Named())
    try:
        asked = Request(f"http://127.0.0.1:{listener.port}/metrics", headers=prometheus)
        with urlopen(asked, timeout=10) as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert b"\nvllm:num_requests_running 3.0\n" in response.read()
    finally:
        listener.close()


async def test_a_collector_on_a_loop_is_asked_there() -> None:
    loop = asyncio.get_running_loop()

    class OfTheLoop:
        def collect(self) -> Iterable[Metric]:
            assert asyncio.get_running_loop() is loop
            yield gauge("test_here", "Here.", 1, {})

    listener = MetricsListener("127.0.0.1", 0, OnLoop(OfTheLoop(), loop))
    try:
        url = f"http://127.0.0.1:{listener.port}/metrics"
        page = await asyncio.to_thread(lambda: urlopen(url, timeout=10).read())
        assert b"\ntest_here 1.0\n" in page
    finally:
        await asyncio.to_thread(listener.close)


def test_a_loop_that_is_closed_gives_no_numbers(snapshot: Snapshot) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    assert list(OnLoop(snapshot, loop).collect()) == []


def test_a_taken_port_is_named(listener: MetricsListener) -> None:
    with pytest.raises(OSError, match=f"127.0.0.1:{listener.port}"):
        MetricsListener("127.0.0.1", listener.port, Snapshot())


def test_a_closed_listener_gives_its_port_back(snapshot: Snapshot) -> None:
    closing = MetricsListener("127.0.0.1", 0, snapshot)
    closing.close()
    with socket.socket() as probe:
        probe.settimeout(5)
        assert probe.connect_ex(("127.0.0.1", closing.port)) != 0
