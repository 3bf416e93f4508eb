"""Which engine gets a request; a policy is one file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rhizome_proxy.policies.base import Policy
from rhizome_proxy.policies.least_loaded import LeastLoaded

POLICIES: Final[Mapping[str, Callable[[], Policy]]] = {"least_loaded": LeastLoaded}
"""Policies by the name that the settings use."""
