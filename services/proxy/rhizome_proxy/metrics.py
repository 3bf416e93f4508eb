"""The proxy as Prometheus reads it: requests (`figures`), decisions, the queue, backends."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from rhizome_proxy.pool.backend import State
from rhizome_proxy.router import Router
from rhizome_telemetry.metrics import Metric


class ProxyCollector:
    """Turns the proxy's state into families; see `rhizome_telemetry.metrics.Collector`."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterable[Metric]:
        """The families now."""
        for same in zip(*(face.families() for face in (self._router.http, self._router.grpc)), strict=True):
            for family in same[1:]:
                same[0].samples.extend(family.samples)
            yield same[0]
        yield from self._decisions()
        yield from self._queue()
        yield from self._backends()

    def _decisions(self) -> Iterable[Metric]:
        counts = self._router.counts
        for name, text, value in (
            ("retries", "Requests that went to another backend before their first event.", counts.retries),
            ("retries_denied", "Those that would have, beyond the budget.", counts.retries_denied),
            ("resumes", "Answers that went on at another backend.", counts.resumes),
            ("crash_loops", "Requests (gRPC) under which too many backends were lost.", counts.crash_loops),
        ):
            family = CounterMetricFamily(f"rhizome_proxy_{name}", text)
            family.add_metric([], value)
            yield family

    def _queue(self) -> Iterable[Metric]:
        admissions = self._router.admissions
        if admissions is None:
            return
        waiting = GaugeMetricFamily("rhizome_proxy_queued_requests", "Requests that wait for a backend.")
        waiting.add_metric([], admissions.waiting())
        yield waiting
        counts = admissions.counts
        ended = CounterMetricFamily("rhizome_proxy_admissions", "What the queue did.", labels=["outcome"])
        for outcome in ("at_once", "queued", "refused", "expired", "cancelled"):
            ended.add_metric([outcome], getattr(counts, outcome))
        yield ended

    def _backends(self) -> Iterable[Metric]:
        backends = list(self._router.registry)
        names = ["backend", "kind", "state"]
        states = GaugeMetricFamily("rhizome_proxy_backend_state", "1 for its state.", labels=names)
        for backend in backends:
            for state in State:
                labels = [backend.name, backend.server.kind, state.name.lower()]
                states.add_metric(labels, float(backend.state is state))
        yield states
        own = GaugeMetricFamily(
            "rhizome_proxy_backend_in_flight", "Requests that this proxy has open there.", labels=["backend"]
        )
        weight = GaugeMetricFamily(
            "rhizome_proxy_backend_weight", "Its share; it grows after a return.", labels=["backend"]
        )
        failed = CounterMetricFamily(
            "rhizome_proxy_backend_failures", "Requests that failed before an answer.", labels=["backend"]
        )
        reported = GaugeMetricFamily(
            "rhizome_proxy_backend_reported", "What it last said of itself.", labels=["backend", "what"]
        )
        for backend in backends:
            own.add_metric([backend.name], backend.in_flight)
            weight.add_metric([backend.name], backend.weight)
            failed.add_metric([backend.name], backend.failed)
            for field_, value in backend.report.load.ListFields() if backend.report is not None else ():
                if isinstance(value, int | float):
                    reported.add_metric([backend.name, field_.name], value)
        yield from (own, weight, failed, reported)
