"""Where an engine core can be reached over ZeroMQ, and what that takes.

ipc:///path          on this host, in a private directory; see `ipc`
tcp://host:port      from other hosts, with CURVE keys; see `curve`
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from rhizome_transport.curve import ClientCurve, ServerCurve
from rhizome_transport.ipc import check_endpoint

_TCP: Final = "tcp://"
_LARGEST_PORT: Final = 65_535


def is_core_endpoint(target: str) -> bool:
    """Whether a target is a core's, to be reached over ZeroMQ, and not a gRPC server's."""
    return target.startswith(("ipc://", _TCP))


def check_core_address(endpoint: str) -> None:
    """Accept `ipc:///path` and `tcp://host:port`.

    Raises:
        ValueError: it is something else.
    """
    if not endpoint.startswith(_TCP):
        check_endpoint(endpoint)
        return
    host, port = check_tcp(endpoint)
    if host == "*" or not port:
        raise ValueError(f"endpoint {endpoint!r} is no address to connect to; name host and port")


def check_core_target(endpoint: str, curve: ClientCurve | None = None) -> None:
    """Accept what a client may connect to.

    Args:
        endpoint: `ipc:///path`, or `tcp://host:port` where there are keys.
        curve: the keys.

    Raises:
        ValueError: it is something else, or there are no keys for it.
    """
    check_core_address(endpoint)
    if curve is None and endpoint.startswith(_TCP):
        raise ValueError(
            f"endpoint {endpoint!r} is refused without CURVE keys: over TCP whoever is on the way could read "
            "and change everything; give a secret key of our own and the core's public key, or use gRPC"
        )


def check_served(endpoint: str, curve: ServerCurve | None) -> None:
    """Accept a TCP endpoint to serve.

    Raises:
        ValueError: it is malformed, or there are no keys.
    """
    check_tcp(endpoint)
    if curve is None:
        raise ValueError(
            f"endpoint {endpoint!r} is refused without CURVE keys: over TCP anybody could connect, and read "
            "every prompt; give the core's secret key and the public keys that may connect"
        )


def check_tcp(endpoint: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port`; port 0 takes a free one, host * is every address.

    Raises:
        ValueError: it is something else.
    """
    wrong = ValueError(f"endpoint {endpoint!r} must be tcp://host:port, IPv6 in brackets")
    rest = endpoint.removeprefix(_TCP)
    host, colon, port = rest.rpartition(":")
    if not endpoint.startswith(_TCP) or not colon or not port.isdecimal() or int(port) > _LARGEST_PORT:
        raise wrong
    try:
        known = host == "*" or bool(urlsplit(f"//{host}:{port}").hostname)
    except ValueError:
        raise wrong from None
    if not known or set(host) & set("/;@?# ") or (":" in host and not host.startswith("[")):
        raise wrong
    return host, int(port)
