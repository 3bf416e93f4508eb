"""What the gateway counts, by name and label.

Names and labels are OpenTelemetry's where it has some (`http_server_...`, `gen_ai_server_...`); the others
begin with `rhizome_gateway_` and name things as the engine's own metrics do. No label ever holds what a
client made up: Prometheus keeps every value for ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

from rhizome_gateway.metrics.buckets import HTTP_S
from rhizome_gateway.metrics.generation import GenerationInstruments, GenerationMeter
from rhizome_gateway.metrics.tenants import TENANT_PREFIX, TenantInstruments
from rhizome_gateway.metrics.workers import forget_dead_workers, shared_folder
from rhizome_telemetry.metrics import Metric, gauge

_HTTP = ("http_request_method", "http_route", "http_response_status_code")
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))

_MOST_REASONS = 100
"""Values of one label that are told apart; the gateway knows fewer, so more means that a caller is wrong."""

# Else each counter has a second series, with its age, which no dashboard asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]


class GatewayMetrics:
    """Every number of one gateway process, or of all workers where a folder is shared (see `workers`).

    Methods may be called from any thread and cost about a microsecond; what happens for every token goes
    through a `GenerationMeter` instead.

    Args:
        is_ready: tells at each scrape whether an engine answers; absent in a process that serves nobody.
        max_tenants: tenants that are told apart.
    """

    def __init__(self, is_ready: Callable[[], bool] | None = None, *, max_tenants: int = 100) -> None:
        self.is_ready = is_ready
        self._shared = shared_folder()
        self._values: dict[Counter, set[str]] = defaultdict(set)
        registry = self._registry = CollectorRegistry()
        self._http_seconds = Histogram(
            "http_server_request_duration_seconds",
            "Seconds from a request's arrival to the end of its response; 499 when the client left before.",
            _HTTP,
            buckets=HTTP_S,
            registry=registry,
        )
        self._http_children: dict[tuple[str, str, int], Histogram] = {}
        self._http_active = Gauge(
            "http_server_active_requests",
            "Requests whose response is not complete.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._generations = GenerationInstruments(registry)
        self._tenants = TenantInstruments(registry, max_tenants)
        self._refused = self._counter("requests_refused", "Requests refused, by code of the error.", "reason")
        self._auth_failures = self._counter("auth_failures", "Requests without a valid key.", "reason")
        self._ignored = self._counter(
            "ignored_parameters", "Parameters of requests that have no effect here.", "parameter"
        )

    def generation(self, operation: str, model: str, arrived: float, tenant: str = "") -> GenerationMeter:
        """The meter of one request to a model.

        Args:
            operation: OpenTelemetry's word: `chat`, `text_completion` or `embeddings`.
            model: the served name, never the alias that the client used.
            arrived: when, by `time.monotonic`.
            tenant: whose it is, as an operator named it; nobody's where empty.
        """
        of_tenant = self._tenants.of(tenant) if tenant else None
        return GenerationMeter(self._generations.of(operation, model), arrived, of_tenant)

    def http_begun(self) -> None:
        """A request arrived."""
        self._http_active.inc()

    def http_ended(self, method: str, route: str, status: int, seconds: float) -> None:
        """Its response is complete, or never will be.

        Args:
            method: as the client sent it.
            route: a template such as `/v1/models/{model_id}`, never a path.
            status: of the response; 499 when the client left before its end.
            seconds: since its arrival.
        """
        self._http_active.dec()
        child = self._http_children.get((method, route, status))
        if child is None:
            labels = (method if method in _METHODS else "_OTHER", route, str(status))
            child = self._http_seconds.labels(*labels)
            if method in _METHODS:
                self._http_children[method, route, status] = child
        child.observe(seconds)

    def refused(self, reason: str, tenant: str = "") -> None:
        """A request was refused.

        Args:
            reason: the error's code, such as `rate_limit_exceeded`.
            tenant: whose it was.
        """
        self._count(self._refused, reason)
        if tenant and (known := self._tenants.of(tenant)) is not None:
            known.refused.inc()

    def auth_failed(self, reason: str) -> None:
        """A request had no valid key; the reason is the error's code."""
        self._count(self._auth_failures, reason)

    def ignored_parameter(self, name: str) -> None:
        """A parameter had no effect; the name is one that the gateway knows."""
        self._count(self._ignored, name)

    def collect(self) -> Iterable[Metric]:
        """All families; reads files where workers share them, so a loop calls it on a thread."""
        yield from self._counted()
        if self.is_ready is not None:
            ready = float(self.is_ready())
            yield gauge("rhizome_gateway_ready", "Whether an engine answers this process.", ready, {})

    def text(self, *, tenants: bool = True) -> bytes:
        """All families and, of a gateway without workers, the process's, as Prometheus reads them.

        Args:
            tenants: whether the reader may know about tenants.
        """
        registry = CollectorRegistry()
        if self._shared is None:
            for of_process in (ProcessCollector, PlatformCollector, GCCollector):
                of_process(registry=registry)
        return generate_latest(registry) + generate_latest(self if tenants else _WithoutTenants(self))

    def activity(self) -> list[Metric]:
        """The families that rates and quantiles are made of; on a thread, as `collect`."""
        if self._shared is not None:
            return list(self._counted())
        return [family for metric in self._generations.activity for family in metric.collect()]

    def first_tokens_since(self, began: float) -> list[float] | None:
        """Times to the first token one by one, in seconds; None where other workers have some of them."""
        return None if self.shared else self._generations.first_tokens_since(began)

    @property
    def shared(self) -> bool:
        """Whether other workers' numbers are in these."""
        return self._shared is not None

    def _counted(self) -> Iterable[Metric]:
        if self._shared is None:
            return self._registry.collect()
        forget_dead_workers(self._shared)
        families: Iterable[Metric] = MultiProcessCollector(None, str(self._shared)).collect()  # type: ignore[no-untyped-call]
        return families

    def _counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"rhizome_gateway_{name}", text, (label,), registry=self._registry)

    def _count(self, counter: Counter, value: str) -> None:
        known = self._values[counter]
        if value not in known and len(known) == _MOST_REASONS:
            value = "other"
        else:
            known.add(value)
        counter.labels(value).inc()


class _WithoutTenants:
    """The families that tell nothing about anybody."""

    def __init__(self, metrics: GatewayMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return (one for one in self._metrics.collect() if not one.name.startswith(TENANT_PREFIX))
