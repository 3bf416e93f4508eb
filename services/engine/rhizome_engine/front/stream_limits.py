"""How many long-lived streams a front carries, and how many of them for one caller.

Each costs memory and, where it leads to the core, open files. Whoever opens a thousand gets an error; whoever
comes after finds room, because no host has more than half.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from rhizome_transport.errors import EngineError

MOST_CONNECTS = 1024
MOST_WATCHES = 256
_FILES_PER_CONNECT = 5
"""Both ends of the socket and of its monitor, and the connection of the caller."""
_OTHER_FILES = 256


class StreamLimits:
    """Counts streams of one kind.

    Args:
        most: at once; one host may have half of them.
        what: they are, for the error.

    Attributes:
        open: streams now.
    """

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._of_host: Counter[str] = Counter()
        self.open = 0

    @contextmanager
    def one_of(self, peer: str) -> Iterator[None]:
        """Carry a stream.

        Args:
            peer: as gRPC calls it, such as `ipv4:10.0.0.7:50123`.

        Raises:
            EngineError: RESOURCE_EXHAUSTED, there are too many already.
        """
        host = peer.rpartition(":")[0] or peer
        if self.open >= self._most or self._of_host[host] >= max(1, self._most // 2):
            text = f"too many {self._what} streams are open here ({self.open}); close some, or share one"
            raise EngineError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, text, reason="TOO_MANY_STREAMS", retry_after_s=1.0
            )
        self.open += 1
        self._of_host[host] += 1
        try:
            yield
        finally:
            self.open -= 1
            self._of_host[host] -= 1
            if not self._of_host[host]:
                del self._of_host[host]


def affordable_connects() -> int:
    """`Connect` streams that the limit on open files allows, after it was raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTS
    return max(2, min(MOST_CONNECTS, (soft - _OTHER_FILES) // _FILES_PER_CONNECT))
