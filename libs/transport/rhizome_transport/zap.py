"""ZeroMQ's question whether a key may come in (RFC 27), answered in the loop of whoever serves.

libzmq asks on a socket inside the process, once for each handshake. Without an answer the handshake waits, so
between two steps of an engine is soon enough, and no thread is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

import zmq
from zmq.utils import z85

DOMAIN: Final = b"rhizome"
"""Names our sockets in the question. A socket with a domain refuses everybody while nobody answers."""

_ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_CURVE: Final = b"CURVE"
_PARTS: Final = 7
"""Version, request, domain, address, identity, mechanism, and CURVE's one credential."""

_log = logging.getLogger(__name__)


class ZapHandler:
    """Answers for all sockets of one context; must exist before any of them binds.

    Args:
        context: the sockets'.
        name_of: who has a public key (Z85); None for whom to refuse.

    Attributes:
        socket: readable when there is a question.
    """

    def __init__(self, context: zmq.Context[Any], name_of: Callable[[bytes], str | None]) -> None:
        self._name_of = name_of
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(_ENDPOINT)

    def answer(self) -> None:
        """Answer what was asked so far."""
        while True:
            try:
                question = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.socket.send_multipart(self._verdict(question))

    def close(self) -> None:
        """Answer no more."""
        self.socket.close(linger=0)

    def _verdict(self, question: list[bytes]) -> list[bytes]:
        """Version, request, status, its text, user, metadata."""
        request = question[1] if len(question) > 1 else b""
        name = None
        if len(question) == _PARTS and question[0] == _VERSION and question[5] == _CURVE:
            name = self._name_of(z85.encode(question[6]))
            if name is None:
                address = question[3].decode(errors="replace")
                _log.warning("refused a connection from %s: its key is not among those that may", address)
        if name is None:
            return [_VERSION, request, b"400", b"this key may not connect", b"", b""]
        return [_VERSION, request, b"200", b"OK", name.encode(), b""]
