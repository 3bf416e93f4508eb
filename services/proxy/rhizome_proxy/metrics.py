"""The proxy as Prometheus reads it: requests (`figures`), decisions, the queue, backends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from rhizome_proxy.pool.backend import State
from rhizome_proxy.router import Router
from rhizome_telemetry.metrics import Metric

_REPORTED: Final = {
    "running_requests": ("running_requests", "Requests that a backend computes"),
    "waiting_requests": ("waiting_requests", "Requests in a backend's own queue"),
    "waiting_tokens": ("waiting_tokens", "Prompt tokens that a backend has still to compute"),
    "kv_pages_total": ("kv_pages", "Pages of a backend's KV pool"),
    "kv_pages_in_use": ("kv_pages_in_use", "Pages that a backend's requests hold"),
    "kv_pages_cached": ("kv_pages_cached", "Pages that hold cached prefixes of a backend"),
    "generated_tokens_per_second": (
        "generated_tokens_per_second",
        "Tokens that a backend generates a second",
    ),
}
"""Name and help by field of Load. A backend that does not tell has no series: nothing is not zero."""


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
            ("crash_loops", "Requests under which too many backends were lost.", counts.crash_loops),
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
        reported = {
            field: GaugeMetricFamily(
                f"rhizome_proxy_backend_{name}", f"{text}, as it last said.", labels=["backend"]
            )
            for field, (name, text) in _REPORTED.items()
        }
        for backend in backends:
            own.add_metric([backend.name], backend.in_flight)
            weight.add_metric([backend.name], backend.weight)
            failed.add_metric([backend.name], backend.failed)
            for field, value in backend.report.load.ListFields() if backend.report is not None else ():
                if field.name in reported:
                    reported[field.name].add_metric([backend.name], value)
        yield from (own, weight, failed, *reported.values())
