"""What a relay consists of; `exchange.py` is what it does."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable

from rhizome_relay.answer import Handler
from rhizome_relay.known_heads import KnownHeads, KnownRequest
from rhizome_relay.picker import Picker, RetryBudget
from rhizome_relay.pool import Pools
from rhizome_relay.settings import RelaySettings


class Relay:
    """Shared by all exchanges of a proxy.

    Attributes:
        settings: limits and habits.
        picker: chooses backends.
        budget: bounds retries.
        local: the handler of a path of the proxy's own, `None` for paths of backends.
        pools: connections to backends.
        draining: whether connections of clients end with the response that is under way.
        heads: of requests that clients sent before.
    """

    def __init__(
        self,
        picker: Picker,
        budget: RetryBudget,
        settings: RelaySettings | None = None,
        local: Callable[[bytes], Handler | None] = lambda path: None,
        pools: Pools | None = None,
    ) -> None:
        self.settings = settings or RelaySettings()
        self.picker = picker
        self.budget = budget
        self.local = local
        self.pools = pools or Pools(self.settings)
        self.draining = False
        self.heads: KnownHeads[KnownRequest] = KnownHeads()
        self._ids = itertools.count()
        self._prefix = secrets.token_hex(8).encode()

    def new_id(self) -> bytes:
        """An id for a request that brings none; a UUID's digits, since some servers take nothing else."""
        return b"%b%016x" % (self._prefix, next(self._ids))
