"""The less loaded of two backends drawn by chance (Mitzenmacher 2001).

    draw two, with chances in proportion to weights; first the one with the smaller load of `least_loaded`

Several proxies that see the same reports do not all choose the same backend, as they do where the least
loaded of all wins; and the greatest load stays within O(log log n) of the mean.

Trade-off: it sees less than `least_loaded`, so one proxy alone balances a little worse with it, and it knows
no prefixes. For many proxies in front of many backends whose prompts share nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from rhizome_routing.candidate import AnyCandidate, Candidate
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Policy
from rhizome_routing.policies.requests import open_requests


class PowerOfTwo(Policy):
    """The better of two first, then the other one, then the rest as drawn with `seed`."""

    name = "power_of_two"

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)  # noqa: S311

    def order(self, backends: Sequence[AnyCandidate], ask: Ask | None) -> list[AnyCandidate]:
        """Order `backends`; `ask` does not matter."""
        # Sorted by such a number, each comes first with a chance in proportion to its weight.
        drawn = sorted(backends, key=lambda backend: self._random.expovariate(backend.weight))
        loads = {one.name: load for one, load in zip(backends, open_requests(backends), strict=True)}

        def key(backend: Candidate) -> tuple[float, bool]:
            load, unknown = loads[backend.name]
            return load / backend.weight, unknown

        # An unknown load may lose against an idle third one: it is never the best while an idle one is known.
        idle = [one for one in drawn[2:] if loads[one.name] == (0, False)]
        pair = sorted(drawn[:2], key=key)
        if pair and idle and loads[pair[0].name][1]:
            pair.insert(0, idle[0])
        return pair + [one for one in drawn[2:] if one not in pair]
