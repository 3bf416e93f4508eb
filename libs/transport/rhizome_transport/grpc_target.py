"""Addresses as gRPC writes them, for who connects without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import grpc

from rhizome_transport.errors import EngineError

_UNIX: Final = "unix:"
_USUAL_PORT: Final = 443


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """Where a server listens.

    Attributes:
        host: name or IP address; empty for a Unix socket.
        port: 0 for a Unix socket.
        path: of the Unix socket; empty for TCP.
        authority: what the server is called in requests.
    """

    host: str
    port: int
    path: str
    authority: str

    @classmethod
    def parse(cls, target: str) -> GrpcTarget:
        """Read `host:port`, `dns:///host:port`, `ipv4:` and `ipv6:` with one address, or `unix:/path`.

        Raises:
            EngineError: UNAVAILABLE, it is something else.
        """
        if target.startswith(_UNIX):
            path = target.removeprefix(_UNIX)
            return cls("", 0, "/" + path.lstrip("/") if path.startswith("//") else path, "localhost")
        address = target
        for scheme in ("dns:", "ipv4:", "ipv6:"):
            if target.startswith(scheme):
                address = target.removeprefix(scheme)
                if address.startswith("//"):
                    address = address[2:].partition("/")[2]
                break
        try:
            parts = urlsplit(f"//{address}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or set(address) & set("/@?# ,"):
            text = f"{target!r} is no address; write host:port, IPv6 in brackets, or unix:/path"
            raise EngineError(grpc.StatusCode.UNAVAILABLE, text)
        return cls(host, _USUAL_PORT if port is None else port, "", address)
