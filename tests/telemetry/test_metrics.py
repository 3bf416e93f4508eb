"""What Prometheus reads, over a real socket, with Prometheus's own parser."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rhizome_telemetry.metrics import Metric, MetricsListener, counter, gauge, histogram

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


def test_a_taken_port_is_named(listener: MetricsListener) -> None:
    with pytest.raises(OSError, match=f"127.0.0.1:{listener.port}"):
        MetricsListener("127.0.0.1", listener.port, Snapshot())


def test_a_closed_listener_gives_its_port_back(snapshot: Snapshot) -> None:
    closing = MetricsListener("127.0.0.1", 0, snapshot)
    closing.close()
    with socket.socket() as probe:
        probe.settimeout(5)
        assert probe.connect_ex(("127.0.0.1", closing.port)) != 0
