"""Which engine gets a request; a policy is one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rhizome_routing.policies.base import Policy
from rhizome_routing.policies.cost import Cost
from rhizome_routing.policies.least_loaded import LeastLoaded
from rhizome_routing.policies.power_of_two import PowerOfTwo
from rhizome_routing.policies.round_robin import RoundRobin
from rhizome_routing.policies.session import Session

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {
    "cost": Cost,
    "least_loaded": LeastLoaded,
    "power_of_two": PowerOfTwo,
    "round_robin": RoundRobin,
    "session": Session,
}
"""Policies by the name that the settings use."""
