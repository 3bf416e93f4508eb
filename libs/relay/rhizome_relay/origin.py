"""From a backend's URL to its origin."""

from __future__ import annotations

import functools
import ssl
from typing import Final
from urllib.parse import urlsplit

from rhizome_relay.picker import Origin

_PORTS: Final = {"http": 80, "https": 443}


def read_origin(url: str) -> Origin:
    """Where a URL leads. HTTPS believes the authorities that the system believes.

    Args:
        url: such as `http://10.0.0.1:8000` or `https://host/base`; a `/v1` at its end is left out, since
            requests bring it.

    Raises:
        ValueError: it is none, or has parts that an origin does not have.
    """
    try:
        parts = urlsplit(url)
        port = _PORTS[parts.scheme] if parts.port is None else parts.port
        base = parts.path.rstrip("/").removesuffix("/v1").encode("ascii")
        host = (parts.hostname or "").encode("ascii").decode()
        odd = (
            parts.username is not None or parts.query or parts.fragment or not url.isprintable() or " " in url
        )
    except (ValueError, KeyError):
        odd, host = True, ""
    if odd or not host or not port:
        raise ValueError(
            f"{url!r} is no backend; write http://host:port or https://host/base, without user, query and "
            "fragment, IPv6 in brackets"
        )
    return Origin(host, port, base, _tls() if parts.scheme == "https" else None)


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all: connections are shared by equal origins."""
    return ssl.create_default_context()
