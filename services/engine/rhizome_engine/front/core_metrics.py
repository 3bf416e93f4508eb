"""What a front counts of its cores: these numbers outlive each of them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily

from rhizome_engine.front.supervisor import CoreSupervisor
from rhizome_telemetry.metrics import Metric, gauge

_RESTARTS = "Times that a core was started again, by why the one before ended."
_SILENT = "Seconds since the core last made progress, as its front sees it; 0 while none serves."


class CoreCollector:
    """Reads the supervisor's counts.

    Args:
        supervisor: keeps the cores.
        model: the label of every value.
    """

    def __init__(self, supervisor: CoreSupervisor, model: str) -> None:
        self._supervisor = supervisor
        self._model = model

    def collect(self) -> Iterator[Metric]:
        """The numbers; called on another thread, which may see one restart late."""
        family = CounterMetricFamily("rhizome_engine_core_restarts", _RESTARTS, labels=("model", "reason"))
        for reason, count in sorted(self._supervisor.restarts.items()):
            family.add_metric((self._model, reason), count)
        yield family
        labels = {"model": self._model}
        yield gauge("rhizome_engine_core_silent_seconds", _SILENT, self._supervisor.silent_s, labels)
