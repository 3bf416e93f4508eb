"""`--metrics-port`: a listener that has only `/metrics`, and asks nobody for a key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_gateway.settings import GatewaySettings
from rhizome_telemetry.metrics import MetricsListener


@contextmanager
def metrics_listener(settings: GatewaySettings, metrics: GatewayMetrics) -> Iterator[None]:
    """Listen until the block ends, where the settings want it; with workers, in their parent.

    Raises:
        OSError: the address cannot be had.
    """
    if not settings.metrics_port:
        yield
        return
    listener = MetricsListener(settings.metrics_host, settings.metrics_port, metrics)
    try:
        yield
    finally:
        listener.close()
