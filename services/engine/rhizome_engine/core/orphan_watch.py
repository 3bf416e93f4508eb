"""When a core that a front started should end because no front is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rhizome_engine.core_record import FRONT_PEER_NAME
from rhizome_transport.frame_server import Peer


class OrphanWatch:
    """Notices that no front has been connected for a while.

    A front that was killed and started again finds its core still there and loads no model; a core whose
    front never comes back does not stay for ever.

    Args:
        grace_s: how long to wait for a front; None waits for ever.
        clock: monotonic seconds.
    """

    def __init__(self, grace_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.grace_s = grace_s if grace_s is not None else float("inf")
        self._clock = clock
        self._last_seen = clock()

    def is_orphaned(self, peers: Iterable[Peer]) -> bool:
        """Whether no front is among `peers`, and none was for `grace_s`."""
        now = self._clock()
        if any(peer.name == FRONT_PEER_NAME and not peer.relayed for peer in peers):
            self._last_seen = now
        return now - self._last_seen > self.grace_s
