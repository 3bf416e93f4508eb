"""Priority groups: the backends of a later one get requests while all of the earlier ones are down or busy.

    order = first those that are not busy, then the busy ones; among either by group; within it by policy

`priority` of a backend is its group, 0 the first. So a spare pool, or somebody else's expensive API, takes
what the own engines have no room for, and nothing while they do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rhizome_routing.candidate import AnyCandidate, Candidate
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Placement, Policy
from rhizome_routing.prefix.index import PrefixIndex


class PriorityGroups(Policy):
    """Puts what `policy` ordered into groups; its name is the policy's."""

    def __init__(self, policy: Policy) -> None:
        self.name = policy.name
        self.policy = policy

    @property
    def index(self) -> PrefixIndex | None:
        """See `Policy`."""
        return self.policy.index

    def order(self, backends: Sequence[AnyCandidate], ask: Ask | None) -> list[AnyCandidate]:
        """Order `backends` group by group."""
        ordered = self.policy.order(backends, ask)
        group = backends[0].priority if backends else 0
        for backend in backends:
            if backend.busy or backend.priority != group:
                ordered.sort(key=lambda one: (one.busy, one.priority))
                break
        return ordered

    def place(self, backend: Candidate, ask: Ask | None) -> Placement:
        """See `Policy`."""
        return self.policy.place(backend, ask)

    def retain(self, names: Collection[str]) -> None:
        """See `Policy`."""
        self.policy.retain(names)
