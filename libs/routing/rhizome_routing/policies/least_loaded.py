"""The backend with the fewest open requests.

    load(b) = (requests that this proxy has open at b + requests that others have open at b) / weight of b

The first term is exact and immediate, so that a burst between two load reports spreads; a policy that trusts
reports alone sends all of it to one backend. The second comes from b's last report, less what this proxy had
open there at that moment. Where a report is missing or old, the second term is *unknown, never idle*: it
counts as the largest that any backend reports, and after a backend that is known to be as busy.

The weight is the configured one, and less for a while after b was away. Equal loads are drawn by weight.

Trade-off: a request counts as one however long its prompt is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rhizome_routing.candidate import AnyCandidate
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Policy
from rhizome_routing.policies.requests import open_requests


class LeastLoaded(Policy):
    """Fewest open requests first; ties in random order, drawn with `seed`."""

    name = "least_loaded"

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def order(self, backends: Sequence[AnyCandidate], ask: Ask | None) -> list[AnyCandidate]:
        """Order `backends` by load; `ask` does not matter."""
        rows = [
            (load / backend.weight, unknown, self._random.expovariate(backend.weight), backend)
            for backend, (load, unknown) in zip(backends, open_requests(backends), strict=True)
        ]
        rows.sort(key=lambda row: row[:3])
        return [row[3] for row in rows]
