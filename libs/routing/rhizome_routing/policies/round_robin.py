"""Each backend in turn, as often as its weight says.

    every backend gains its weight; the one that has gained most is next, and pays what all gained together

This is nginx's smooth weighted round robin: turns of a heavy backend are spread between those of the others.

Trade-off: it looks at nothing, neither load nor prefixes, and so it needs nothing. For backends that are all
alike, with requests that are, and as what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rhizome_routing.candidate import AnyCandidate
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Policy


class RoundRobin(Policy):
    """Whose turn it is first; then those whose turn is nearest."""

    name = "round_robin"

    def __init__(self, seed: int | None = None) -> None:
        self._gained: dict[str, float] = {}

    def order(self, backends: Sequence[AnyCandidate], ask: Ask | None) -> list[AnyCandidate]:
        """Order `backends`; `ask` does not matter."""
        gained = self._gained
        for backend in backends:
            gained[backend.name] = gained.get(backend.name, 0.0) + backend.weight
        ordered = sorted(backends, key=lambda backend: -gained[backend.name])
        if ordered:
            gained[ordered[0].name] -= sum(backend.weight for backend in backends)
        return ordered

    def retain(self, names: Collection[str]) -> None:
        """See `Policy`."""
        self._gained = {name: gain for name, gain in self._gained.items() if name in names}
