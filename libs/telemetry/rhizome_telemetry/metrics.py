"""Numbers for Prometheus: families built from a snapshot, and the HTTP listener that serves them.

Services keep their numbers themselves, because their own RPCs report them too; nothing is counted twice. A
*collector* is asked at each scrape and turns one snapshot into metric families.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import make_wsgi_app, start_http_server

__all__ = [
    "Collector",
    "Metric",
    "MetricsListener",
    "OnLoop",
    "counter",
    "cumulative",
    "gauge",
    "histogram",
]

_log = logging.getLogger(__name__)

_SCRAPE_LIMIT_S: Final = 10.0
"""After which Prometheus has given up, unless told otherwise."""


class Collector(Protocol):
    """Gives the families of one snapshot; called on a thread of the listener, and must not raise."""

    def collect(self) -> Iterable[Metric]:
        """The families now."""
        ...


class MetricsListener:
    """Serves `/metrics` on threads of its own, beside whatever loop the process runs.

    The process's memory, CPU time and open files are served with it.

    Args:
        host: address to listen on.
        port: 0 takes a free one.
        collectors: asked at each scrape.

    Attributes:
        port: where it listens.

    Raises:
        OSError: the address is taken or not ours.
    """

    def __init__(self, host: str, port: int, *collectors: Collector) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        for collector in collectors:
            registry.register(_Undescribed(collector))
        try:
            self._server, _ = start_http_server(port, host, registry)
            self._server.set_app(_in_plain_text(make_wsgi_app(registry)))
        except OSError as error:
            raise OSError(f"cannot serve metrics on {host}:{port}: {error}") from error
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stop listening; takes up to half a second, so a loop calls it on a thread."""
        self._server.shutdown()
        self._server.server_close()


def _in_plain_text(app: Callable[..., Any]) -> Callable[..., Any]:
    """Answer in the text format whatever a scraper prefers.

    In OpenMetrics, `prometheus_client` 0.26 writes a colon in a sample's name as an underscore, so nobody
    finds `vllm:…`; and there is nothing here that only OpenMetrics can say.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        return app({**environ, "HTTP_ACCEPT": "text/plain"}, start_response)

    return answer


class _Undescribed:
    """Keeps the registry from collecting once at registration, when the service does not run yet."""

    def __init__(self, collector: Collector) -> None:
        self.collect = collector.collect

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape."""
        return ()


def gauge(name: str, text: str, value: float, labels: Mapping[str, str]) -> Metric:
    """A value that goes up and down.

    Args:
        name: with the unit, such as `x_seconds`.
        text: what it is, with its unit.
        value: now.
        labels: by name.
    """
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def counter(name: str, text: str, value: float, labels: Mapping[str, str]) -> Metric:
    """A value that only grows; served as `name` + `_total`."""
    family = CounterMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def histogram(
    name: str,
    text: str,
    upper_bounds: Sequence[float],
    counts: Sequence[int],
    total: float,
    labels: Mapping[str, str],
) -> Metric:
    """Values by size.

    Args:
        name: with the unit.
        text: what the values are.
        upper_bounds: largest value of each bucket but the last.
        counts: values in each bucket, not cumulative; one more than there are bounds.
        total: sum of all values.
        labels: by name.
    """
    family = HistogramMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), cumulative(upper_bounds, counts), total)
    return family


def cumulative(upper_bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Buckets as families take them: each with all values up to its bound."""
    edges = [*(repr(float(bound)) for bound in upper_bounds), "+Inf"]
    return [(edge, float(count)) for edge, count in zip(edges, itertools.accumulate(counts), strict=True)]


class OnLoop:
    """A collector whose service belongs to an event loop: it is asked there, for nothing there has locks.

    Args:
        collector: asked on the loop.
        loop: the service's.
    """

    def __init__(self, collector: Collector, loop: asyncio.AbstractEventLoop) -> None:
        self._collector = collector
        self._loop = loop

    def collect(self) -> Iterable[Metric]:
        """The families now; none from a loop that does not answer, as while the service ends."""

        async def families() -> list[Metric]:
            return list(self._collector.collect())

        coroutine = families()
        try:
            asked = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            return []
        try:
            return asked.result(_SCRAPE_LIMIT_S)
        except (TimeoutError, CancelledError):
            asked.cancel()
            _log.warning("no numbers for a scrape: the service did not answer within %g s", _SCRAPE_LIMIT_S)
            return []
