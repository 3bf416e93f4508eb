"""What the core's socket did not take, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily

from rhizome.engine.v1.engine_service_pb2 import GetLoadResponse
from rhizome_telemetry.metrics import Metric, counter


def dropped_frames(model: str) -> Callable[[GetLoadResponse], Iterator[Metric]]:
    """Make the families, with the model as a label."""

    def families(response: GetLoadResponse) -> Iterator[Metric]:
        dropped = response.dropped_frames
        frames = CounterMetricFamily(
            "rhizome_engine_frames_dropped",
            "Frames that the core's socket did not take, by reason.",
            labels=["model", "reason"],
        )
        for reason in ("undecodable", "before_hello", "unknown"):
            frames.add_metric([model, reason], getattr(dropped, reason))
        yield frames
        text = "Connections over TCP that the core did not let in."
        yield counter(
            "rhizome_engine_connections_refused", text, dropped.refused_connections, {"model": model}
        )

    return families
