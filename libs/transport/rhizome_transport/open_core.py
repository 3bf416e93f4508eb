"""The connection to an engine core that its endpoint asks for."""

from __future__ import annotations

from typing import Any

import zmq

from rhizome_transport.core_connection import CoreConnection
from rhizome_transport.curve import ClientCurve
from rhizome_transport.dealer import DealerConnection
from rhizome_transport.ipc_dealer import IpcDealer


def open_core(
    context: zmq.Context[Any], endpoint: str, *, identity: bytes = b"", curve: ClientCurve | None = None
) -> CoreConnection:
    """Connect; must be called inside the running loop.

    Args:
        context: for TCP, shared by all connections of a process.
        endpoint: `ipc:///path`, or `tcp://host:port` with keys; see `endpoint.check_core_target`.
        identity: how the server addresses it, not used before; made up when empty.
        curve: keys for TCP; not used on ipc.

    Raises:
        EngineError: UNAVAILABLE, there are too many sockets or open files already.
    """
    if endpoint.startswith("ipc://"):
        return IpcDealer(endpoint, identity=identity)
    return DealerConnection(context, endpoint, identity=identity, curve=curve)
