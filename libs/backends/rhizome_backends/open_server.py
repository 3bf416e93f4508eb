"""From an address to the server behind it."""

from __future__ import annotations

from rhizome_backends.base import Server
from rhizome_backends.detect import HTTP_KINDS, DetectingServer
from rhizome_backends.rhizome import RhizomeEngine
from rhizome_backends.rhizome_core import RhizomeCore
from rhizome_backends.spec import BackendSpec
from rhizome_relay.origin import read_origin
from rhizome_relay.pool import Pools
from rhizome_transport.curve import ClientCurve
from rhizome_transport.endpoint import check_core_address
from rhizome_transport.tls import ClientTls
from rhizome_transport.tokens import Tokens


def open_server(
    spec: BackendSpec,
    *,
    pools: Pools,
    tls: ClientTls | None = None,
    tokens: Tokens | None = None,
    curve: ClientCurve | None = None,
) -> Server:
    """Make the server behind an address; nothing is asked of it yet. Must run inside the loop.

    Args:
        spec: what is set for it.
        pools: connections of the relay.
        tls: how engines of ours are spoken to over gRPC; plaintext where absent.
        tokens: what engines of ours want to be shown, if they do.
        curve: how engine cores of ours are spoken to over ZeroMQ; only on this host where absent.

    Raises:
        ValueError: the address, or what comes with it, is wrong.
    """
    check_spec(spec)
    if spec.core:
        return RhizomeCore(spec.address, curve=curve)
    if not spec.http:
        return RhizomeEngine(spec.address, tls=tls, tokens=tokens)
    headers = ((b"authorization", b"Bearer " + spec.key.encode()),) if spec.key else ()
    kind = HTTP_KINDS.get(spec.kind, DetectingServer)
    return kind(pools, read_origin(spec.address), headers, events=spec.events)


def check_spec(spec: BackendSpec) -> None:
    """Say what is wrong before the server is needed: `open_server` takes what passes.

    Raises:
        ValueError: the address, or what comes with it, is wrong.
    """
    address, kind, key, events = spec.address, spec.kind, spec.key, spec.events
    if not spec.http:
        if kind not in ("", RhizomeEngine.kind) or key or events:
            raise ValueError(
                f"{address} is an engine of ours: no kind, key or events; or write http://{address}"
            )
        if spec.core:
            check_core_address(address)
        return
    if kind and kind not in HTTP_KINDS:
        raise ValueError(f"{address} cannot be of kind {kind!r}; use one of {', '.join(HTTP_KINDS)}")
    if events and not all(one.startswith(("tcp://", "ipc://")) for one in events.split(",")):
        raise ValueError(f"{events!r} must be one or two ZeroMQ addresses, such as tcp://host:5557")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the key of {address} cannot be sent; it must be printable ASCII")
    read_origin(address)
