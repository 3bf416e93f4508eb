"""Shared tokens: who may call a gRPC port.

A token says "one of ours". It is for networks that are private but not trusted as a whole, and belongs inside
TLS wherever somebody may listen. Nothing here loads gRPC: settings are read before it may be.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MIN_TOKEN_CHARS = 16
"""Fewer could be guessed over the network."""
_MAX_TOKENS = 64
_MAX_FILE_BYTES = 64 * 1024
_SCHEME = "Bearer "


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token file holds.

    A server takes each of them, a client shows the first. To change tokens without a gap, give the servers
    both, then the clients the new one, then take the old one from the servers.

    Attributes:
        all: the tokens, in the order of the file.
    """

    all: tuple[str, ...] = field(repr=False)

    @classmethod
    def from_file(cls, path: Path | None) -> Self | None:
        """Read one token a line; empty lines and lines that begin with # do not count.

        Returns:
            None where settings name no file: everybody may call then.

        Raises:
            ValueError: the file is missing, holds no token, or one that cannot be sent or could be guessed.
        """
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
        if len(content) > _MAX_FILE_BYTES:
            raise ValueError(f"{path} has {len(content)} bytes; that is no token file")
        lines = [line.strip() for line in content.decode("latin-1").splitlines()]
        tokens = tuple(line for line in lines if line and not line.startswith("#"))
        for number, token in enumerate(tokens, start=1):
            if not (token.isascii() and token.isprintable()) or " " in token:
                raise ValueError(f"token {number} of {path} cannot be sent; it must be ASCII without spaces")
            if len(token) < MIN_TOKEN_CHARS:
                raise ValueError(
                    f"token {number} of {path} has {len(token)} characters and could be guessed; it needs "
                    f"{MIN_TOKEN_CHARS}, as `openssl rand -hex 32` makes them"
                )
        if not 1 <= len(tokens) <= _MAX_TOKENS:
            raise ValueError(f"{path} must hold 1 to {_MAX_TOKENS} tokens, one a line, not {len(tokens)}")
        return cls(tokens)

    @property
    def authorization(self) -> str:
        """What a client sends."""
        return _SCHEME + self.all[0]

    def accept(self, authorization: str | bytes | None) -> bool:
        """Whether a client's `authorization` holds one of them; takes the same time whatever it holds."""
        if isinstance(authorization, bytes):
            authorization = authorization.decode("latin-1")
        given = hashlib.sha256((authorization or "").encode()).digest()
        accepted = False
        for token in self.all:
            wanted = hashlib.sha256((_SCHEME + token).encode()).digest()
            accepted |= hmac.compare_digest(given, wanted)
        return accepted


def check_admin_host(host: str, *, guarded: bool) -> None:
    """Refuse to let strangers drain engines and flush caches.

    Args:
        host: the address of an admin listener.
        guarded: whether it asks for a token, or for clients' certificates.

    Raises:
        ValueError: others than this machine reach it, and nothing says who they are.
    """
    if guarded or is_loopback(host):
        return
    raise ValueError(
        f"others than this machine must not reach the admin listener at {host} without showing who they are; "
        "listen on 127.0.0.1, or give --token-file, or --tls-cert, --tls-key and --tls-client-ca"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; names other than localhost do not count."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
