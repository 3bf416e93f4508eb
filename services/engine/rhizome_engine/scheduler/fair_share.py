"""How much each tenant was served: virtual token counters.

Whoever was served fewest tokens goes first. A tenant that comes back after a pause starts at the level of the
least served tenant that is active, so it can neither save up idle time nor escape what it used before
(Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Once nobody has a request, all are
even: what somebody had yesterday is no reason to wait for who comes today.
"""

from __future__ import annotations

import numpy as np

from rhizome_engine.batch import Int64

OUTPUT_TOKEN_COST = 2.0
"""In prompt tokens: those share one read of the weights with many others, and need no sampling."""
_REMEMBERED_TENANTS = 4096


class FairShare:
    """Counters of the tenants that have open requests, and of those that had some lately.

    Attributes:
        served: [capacity] float64, cost served so far, by tenant number.
    """

    def __init__(self) -> None:
        self.served = np.zeros(16)
        self._numbers: dict[str, int] = {}
        self._open: dict[str, int] = {}

    @property
    def num_active(self) -> int:
        """Tenants with open requests."""
        return len(self._open)

    def open(self, tenant: str) -> int:
        """Count a new request of a tenant; returns the tenant's number, valid until its last `close`."""
        if tenant in self._open:
            self._open[tenant] += 1
            return self._numbers[tenant]
        number = self._numbers.pop(tenant, None)
        if number is None:
            number = self._take_number()
            self.served[number] = 0.0
        if self._open:
            least = min(self.served[self._numbers[other]] for other in self._open)
            # One token below, so that it goes before those who run already.
            self.served[number] = max(self.served[number], least - 1.0)
        self._numbers[tenant] = number  # at the end: tenants are remembered in order of their last start
        self._open[tenant] = 1
        return number

    def close(self, tenant: str) -> None:
        """Count the end of a request."""
        self._open[tenant] -= 1
        if not self._open[tenant]:
            del self._open[tenant]
            if not self._open:
                self._numbers.clear()

    def cost_served(self, tenant: str) -> float:
        """What an active tenant was served."""
        return float(self.served[self._numbers[tenant]])

    def charge(self, numbers: Int64, costs: float | Int64) -> None:
        """Add to the counters of tenants, [n] numbers that may repeat; idle while there is only one tenant.

        That changes nothing: the second tenant will start at the first one's level.
        """
        if len(self._open) > 1:
            np.add.at(self.served, numbers, costs)

    def _take_number(self) -> int:
        if len(self._numbers) >= _REMEMBERED_TENANTS:
            idle = next((tenant for tenant in self._numbers if tenant not in self._open), None)
            if idle is not None:
                return self._numbers.pop(idle)
        number = len(self._numbers)
        if number >= len(self.served):
            self.served = np.concatenate([self.served, np.zeros(len(self.served))])
        return number
