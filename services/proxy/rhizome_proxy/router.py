"""Which backend gets a request; both faces ask here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from rhizome_proxy.figures import RequestFigures
from rhizome_proxy.pool.backend import Backend
from rhizome_proxy.pool.registry import Registry, trusted
from rhizome_routing.admission import Admission, Admissions
from rhizome_routing.policies.ask import Ask
from rhizome_routing.policies.base import Policy
from rhizome_routing.retry_budget import RetryBudget

USUAL_OUTPUT: Final = 256
"""Tokens to be expected where a request sets no limit."""


_MOST_KNOWN: Final = 256
"""Names of models that are remembered; clients may ask for any."""


@dataclass(slots=True)
class RouteCounts:
    """What became of requests whose engine did not answer them, since the proxy started.

    Attributes:
        retries: requests that went to another engine before their first event.
        retries_denied: those that would have, but the budget for retries was used up.
        resumes: requests that went on at another engine after their first event.
        crash_loops: requests given up because too many engines were lost under them.
    """

    retries: int = 0
    retries_denied: int = 0
    resumes: int = 0
    crash_loops: int = 0


class Lane(NamedTuple):
    """What holds for all requests of a face for a model, until something changes in the pool.

    Attributes:
        healthy: backends that may get them.
        served: whether a backend is known to serve the model by that name, whatever its face.
        group: the queue that they wait in.
    """

    healthy: list[Backend]
    served: bool
    group: str


class Router:
    """Chooses backends for all requests of this proxy.

    Args:
        registry: the backends.
        policy: puts them in order.
        budget: for retries of refused requests.
        max_resumes: so many engines may be lost under one request.
        resume_wait_s: how long a request that has begun waits for an engine to go on at.
        timeout_s: the longest that any request may take; `None` for what the caller says.
        admissions: the queues in front of the backends; `None` for none.

    Attributes:
        counts: what was decided, for metrics.
        http: what became of requests of that face.
        grpc: the same.
    """

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        *,
        budget: RetryBudget | None = None,
        max_resumes: int = 3,
        resume_wait_s: float = 5.0,
        timeout_s: float | None = None,
        admissions: Admissions | None = None,
    ) -> None:
        self.admissions = admissions
        self.registry = registry
        self.policy = policy
        self.budget = budget or RetryBudget()
        self.max_resumes = max_resumes
        self.resume_wait_s = resume_wait_s
        self.timeout_s = timeout_s
        self.counts = RouteCounts()
        self._lanes: dict[tuple[str, bool], Lane] = {}
        self._lanes_at = -1
        self.http = RequestFigures("http", self.serves)
        self.grpc = RequestFigures("grpc", self.serves)

    def serves(self, model: str) -> bool:
        """Whether some backend is known to serve a model by that name."""
        return self._lane(model, http=True).served

    def serving(self, model: str, *, http: bool) -> list[Backend]:
        """Backends of a face that are ready for requests for a model; see `pick`."""
        return trusted(self._lane(model, http=http).healthy)

    def _lane(self, model: str, *, http: bool) -> Lane:
        if self._lanes_at != self.registry.version:
            self._lanes_at = self.registry.version
            self._lanes.clear()
        lane = self._lanes.get((model, http))
        if lane is None:
            if len(self._lanes) >= _MOST_KNOWN:
                self._lanes.clear()
            served = any(one.knows(model) for one in self.registry.members)
            group = ("http:" if http else "grpc:") + self._group_name(model, served=served)
            lane = self._lanes[model, http] = Lane(self._healthy(model, http=http), served, group)
        return lane

    def _group_name(self, model: str, *, served: bool) -> str:
        """Which queue requests for a model wait in: wrong names and aliases must not give more turns."""
        if not model:
            return ""
        if not served:
            return "*" if any("*" in one.spec.aliases for one in self.registry.members) else ""
        own = {one.name: one.own_name(model) for one in self.registry.members if one.knows(model)}
        name = next(iter(own.values())) or model
        same = {one.name: one.own_name(name) for one in self.registry.members if one.knows(name)}
        return name if own == same else model

    def taking(self, group: str) -> list[Backend]:
        """Backends of a group of requests, as `offer` names them."""
        face, _, model = group.partition(":")
        return self.serving(model, http=face == "http")

    def _healthy(self, model: str, *, http: bool) -> list[Backend]:
        members = [one for one in self.registry.members if one.http is http]
        healthy = [backend for backend in members if backend.healthy]
        if not model:
            return healthy
        # One whose models are not known yet may well have it.
        likely = [backend for backend in healthy if not backend.models or backend.knows(model)]
        if any(backend.knows(model) for backend in members):
            return likely
        return [one for one in healthy if one.own_name(model) is not None] or healthy

    def resumed(self, lost: str) -> None:
        """Count an answer that went on elsewhere when the backend of that name was lost."""
        self.counts.resumes += 1
        backend = self.registry.get(lost)
        if backend is not None:
            backend.resumed += 1

    def queue(self, model: str, *, http: bool) -> Admission | None:
        """Where requests for a model ask for a place at its backends; `None` where there is no queue."""
        if self.admissions is None:
            return None
        return self.admissions.of(self._lane(model, http=http).group)

    def pick(
        self, ask: Ask | None, model: str, tried: Collection[str] = (), *, http: bool = False
    ) -> Backend | None:
        """The best backend of a face that is ready and was not tried; a busy one only where all are.

        Where a backend is known to serve the model by that name, be it ready or not, such ones get it. Others
        take what nobody knows: those with an alias for it, else any, who may say so in its own words.
        """
        untried = self.serving(model, http=http)
        if tried:
            untried = [backend for backend in untried if backend.name not in tried]
        if len(untried) < 2:
            return untried[0] if untried else None
        ordered = self.policy.order(untried, ask)
        for backend in ordered:
            if backend.room.free(backend) > 0:
                return backend
        return ordered[0]
