"""One backend for all requests with the same affinity key: a session, a user, a `prompt_cache_key`.

    score(b) = -ln u(key, b) / weight of b, with u a hash in (0, 1); the smallest first (rendezvous hashing)
    bound(b) = ⌈1.25 · (open requests at all backends + 1) · b's share of all weights⌉, and 4 at least

Backends at their bound come after all others (Mirrokni, Thorup, Zadimoghaddam 2018), so a popular key spreads
instead of drowning one backend. Several proxies agree without talking, and a backend that joins or leaves
moves only the keys that it gains or loses. A request without a key goes to the least loaded.

Trade-off: keys know nothing of prompts. Two keys with the same system prompt have it computed twice, and a
long prompt counts like a short one; `cost` sees both. For clients that keep state elsewhere, or where prompts
cannot be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

from rhizome_routing.candidate import AnyCandidate, Candidate
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Policy
from rhizome_routing.policies.least_loaded import LeastLoaded
from rhizome_routing.policies.requests import open_requests

_SLACK = 1.25
_LEAST = 4
"""So few requests are no crowd: a key keeps its backend."""


class Session(Policy):
    """The key's own backend first, if it has room; `seed` is for requests without a key."""

    name = "session"

    def __init__(self, seed: int | None = None) -> None:
        self._keyless = LeastLoaded(seed)

    def order(self, backends: Sequence[AnyCandidate], ask: Ask | None) -> list[AnyCandidate]:
        """Order `backends` for the request's key."""
        if ask is None or not ask.affinity_key or not backends:
            return self._keyless.order(backends, ask)
        loads = open_requests(backends)
        allowed = _SLACK * (sum(load for load, _ in loads) + 1) / sum(backend.weight for backend in backends)
        idle = any(load == (0, False) for load in loads)
        rows = [
            (
                load >= max(_LEAST, math.ceil(allowed * backend.weight)) or (unknown and idle),
                _score(ask.affinity_key, backend),
                backend,
            )
            for backend, (load, unknown) in zip(backends, loads, strict=True)
        ]
        rows.sort(key=lambda row: row[:2])
        return [row[2] for row in rows]


def _score(key: str, backend: Candidate) -> float:
    digest = blake2b(key.encode(), digest_size=8, key=backend.name.encode()[-64:]).digest()
    return -math.log((int.from_bytes(digest, "little") + 0.5) / 2**64) / backend.weight
