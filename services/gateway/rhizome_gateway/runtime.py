"""What the routes of one gateway process share."""

from __future__ import annotations

from dataclasses import dataclass

from rhizome_gateway.auth.guard import Guard
from rhizome_gateway.engine_session import EngineSession
from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_gateway.settings import GatewaySettings


@dataclass(slots=True)
class Runtime:
    """The parts of a running gateway.

    Attributes:
        settings: the configuration.
        session: the engine and what it serves.
        guard: who may do how much.
        metrics: what is counted.
    """

    settings: GatewaySettings
    session: EngineSession
    guard: Guard
    metrics: GatewayMetrics
