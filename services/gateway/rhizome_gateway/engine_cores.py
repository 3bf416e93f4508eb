"""Engine cores that the gateway reaches over ZeroMQ, without gRPC and without a proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rhizome_transport.curve import ClientCurve
from rhizome_transport.endpoint import check_core_target, is_core_endpoint

if TYPE_CHECKING:
    from rhizome_gateway.settings import GatewaySettings
    from rhizome_transport.client import EngineClient

PEER_NAME = "rhizome-gateway"


def engine_cores(settings: GatewaySettings) -> tuple[tuple[str, ...], ClientCurve | None]:
    """Endpoints of the cores, none where the engine is reached over gRPC, and the keys for TCP.

    Raises:
        ValueError: an endpoint is wrong, is named twice or needs keys, keys are wrong or not needed, or
            several gRPC servers are named.
    """
    curve = ClientCurve.from_files(settings.engine_curve_key, settings.engine_curve_server)
    targets = [target.strip() for target in settings.engine.split(",") if target.strip()]
    cores = tuple(target for target in targets if is_core_endpoint(target))
    if not cores:
        if len(targets) > 1:
            raise ValueError(
                "--engine takes one gRPC server, or engine cores at ipc:// and tcp://; for several engines "
                "over gRPC put a proxy in front of them"
            )
        if curve is not None:
            raise ValueError("CURVE keys are for engine cores at tcp://; gRPC has --engine-tls-ca")
        return (), None
    if len(cores) < len(targets):
        raise ValueError("--engine takes one gRPC server or engine cores, not both; a proxy takes any")
    if len(set(cores)) < len(cores):
        raise ValueError("--engine names an engine core twice")
    for core in cores:
        check_core_target(core, curve)
    return cores, curve


def connect_cores(cores: tuple[str, ...], curve: ClientCurve | None) -> EngineClient:
    """Make the client for one core or several. Must run inside the loop."""
    from rhizome_transport.balanced_client import BalancedClient
    from rhizome_transport.zmq_client import ZmqEngineClient

    clients = [ZmqEngineClient(core, peer_name=PEER_NAME, curve=curve) for core in cores]
    return clients[0] if len(clients) == 1 else BalancedClient(clients)
