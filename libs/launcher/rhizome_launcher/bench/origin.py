"""The server under load: where it is, and the connections to it."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import quote, urlsplit

from rhizome_launcher.bench.connection import Connection
from rhizome_launcher.bench.errors import BenchError

_CONNECT_TIMEOUT_S = 10.0


class RefusedError(Exception):
    """No connection could be made."""


class Origin:
    """Connections to one server, as many as there are requests at a time; idle ones are used again.

    Args:
        base_url: `http://…` or `https://…`, with or without a path.
        api_key: sent as a bearer token; empty for none.

    Raises:
        BenchError: the address or the key cannot be used.
    """

    def __init__(self, base_url: str, api_key: str) -> None:
        try:
            parts = urlsplit(base_url)
            port = parts.port
            host = parts.netloc.encode("idna").decode()
        except ValueError as error:
            raise BenchError(f"--base-url {base_url} is no address: {error}.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in host:
            raise BenchError(f"--base-url takes http://HOST:PORT or https://HOST:PORT, not {base_url!r}.")
        if not (api_key.isascii() and api_key.isprintable()):
            raise BenchError("the API key has characters that no HTTP header can hold.")
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        self._path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
        head = f"host: {host}\r\naccept: */*\r\nuser-agent: rhizome-bench\r\n"
        self._head = head + (f"authorization: Bearer {api_key}\r\n" if api_key else "")
        self._idle: list[Connection] = []

    def request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Write a request, to be sent as it is.

        Args:
            method: of HTTP.
            path: below that of the base URL.
            body: JSON; None for none.
        """
        head = f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}"
        if body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return f"{head}\r\n".encode() + (body or b"")

    async def connection(self) -> Connection:
        """Take an idle connection, or make one.

        Raises:
            RefusedError: the server cannot be reached, or not be trusted.
        """
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise RefusedError(f"no connection within {_CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise RefusedError(str(error) or type(error).__name__) from error
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next request, where it may have one."""
        if connection.reusable:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()
