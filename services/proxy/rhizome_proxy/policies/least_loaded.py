"""The backend with the fewest open requests.

    load(b) = requests that this proxy has open at b + requests that others have open at b

The first term is exact and immediate, so that a burst between two load reports spreads; a policy that trusts
reports alone sends all of it to one backend. The second comes from b's last report, less what this proxy had
open there at that moment. Where a report is missing or old, the second term is *unknown, never idle*: it
counts as the largest that any backend reports, and after a backend that is known to be as busy.

Trade-off: a request counts as one however long its prompt is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_proxy.pool.backend import Backend


class LeastLoaded:
    """Fewest open requests first; ties in random order."""

    name = "least_loaded"

    def order(self, backends: Sequence[Backend], request: GenerateRequest | None) -> list[Backend]:
        """Order `backends` by load; `request` does not matter."""
        foreign = {backend.name: backend.foreign_requests() for backend in backends}
        worst = max((count for count in foreign.values() if count is not None), default=0)

        def key(backend: Backend) -> tuple[int, bool, float]:
            others = foreign[backend.name]
            unknown = others is None
            return backend.in_flight + (worst if others is None else others), unknown, random.random()  # noqa: S311

        return sorted(backends, key=key)
