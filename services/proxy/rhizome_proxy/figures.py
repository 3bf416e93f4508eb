"""What became of requests, counted.

Generations are named as OpenTelemetry's GenAI conventions name them for servers; other requests, such as for
a list of models, are only counted. A model is a label only if a backend serves it: clients must not make time
series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from rhizome_telemetry.metrics import Metric
from rhizome_telemetry.semconv import PROVIDER_NAME

DURATION_S: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_BYTE_S: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Those of the conventions."""

_GEN_AI: Final = (
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "rhizome_proxy_face",
)
_OTHER: Final = "other"


@dataclass(slots=True)
class Times:
    """A histogram in the making; `counts` has one more than there are bounds."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them."""
        buckets, count = [], 0
        for bound, one in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            count += one
            buckets.append((bound, float(count)))
        return buckets


class RequestFigures:
    """Counts requests of one face.

    Args:
        face: `http` or `grpc`.
        serves: whether a backend serves a model of that name.

    Attributes:
        open: requests under way.
    """

    def __init__(self, face: str, serves: Callable[[str], bool]) -> None:
        self.face = face
        self.open = 0
        self.outcomes: dict[tuple[str, str, str], int] = {}
        self.durations: dict[tuple[str, str, str], Times] = {}
        self.first_bytes: dict[tuple[str, str], Times] = {}
        self.queued = Times(DURATION_S)
        self._serves = serves

    def ended(
        self,
        model: str,
        backend: str,
        code: str,
        *,
        operation: str,
        error: str,
        duration_s: float,
        first_byte_s: float = 0.0,
        queue_s: float = 0.0,
    ) -> None:
        """A request is over.

        Args:
            model: as the client named it.
            backend: who answered; empty when nobody did.
            code: status of the answer.
            operation: what it was, in the words of the conventions; empty where they have none.
            error: what went wrong, in few words; empty when nothing did.
            duration_s: of all of it.
            first_byte_s: until the answer began; 0 when it never did.
            queue_s: what it waited in the proxy's queue.
        """
        self.open -= 1
        key = backend, code, error
        self.outcomes[key] = self.outcomes.get(key, 0) + 1
        if queue_s:
            self.queued.add(queue_s)
        if not operation:
            return
        model = model if self._serves(model) else _OTHER
        times = self.durations.get((operation, model, error))
        if times is None:
            times = self.durations[operation, model, error] = Times(DURATION_S)
        times.add(duration_s)
        if first_byte_s:
            times = self.first_bytes.get((operation, model))
            if times is None:
                times = self.first_bytes[operation, model] = Times(FIRST_BYTE_S)
            times.add(first_byte_s)

    def retain(self, names: Collection[str]) -> None:
        """Forget backends that left the pool: names of pods come and go."""
        kept = {key: count for key, count in self.outcomes.items() if not key[0] or key[0] in names}
        self.outcomes = kept

    def families(self) -> Iterable[Metric]:
        """Everything that was counted."""
        face = self.face
        name = "gen_ai_server_request_duration_seconds"
        text = "Seconds that generations take, queueing included; error_type is empty for a good end."
        duration = HistogramMetricFamily(name, text, labels=[*_GEN_AI, "error_type"])
        for (operation, model, error), times in list(self.durations.items()):
            labels = [operation, PROVIDER_NAME, model, face, error]
            duration.add_metric(labels, times.buckets, times.total)
        name = "gen_ai_server_time_to_first_token_seconds"
        first = HistogramMetricFamily(name, "Seconds until answers begin.", labels=_GEN_AI)
        for (operation, model), times in list(self.first_bytes.items()):
            first.add_metric([operation, PROVIDER_NAME, model, face], times.buckets, times.total)
        labels = ["face", "backend", "code", "error_type"]
        total = CounterMetricFamily("rhizome_proxy_requests", "Requests that ended.", labels=labels)
        for key, count in list(self.outcomes.items()):
            total.add_metric([face, *key], count)
        running = GaugeMetricFamily("rhizome_proxy_open_requests", "Requests under way.", labels=["face"])
        running.add_metric([face], self.open)
        queued = HistogramMetricFamily(
            "rhizome_proxy_queue_seconds",
            "Seconds in the queue, of requests that were queued.",
            labels=["face"],
        )
        queued.add_metric([face], self.queued.buckets, self.queued.total)
        return duration, first, total, running, queued
