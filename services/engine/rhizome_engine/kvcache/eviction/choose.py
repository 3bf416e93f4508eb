"""A policy by its name, or by where to import it from."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from rhizome_engine.kvcache.eviction.base import EvictionPolicy
from rhizome_engine.kvcache.eviction.fifo import FifoPolicy
from rhizome_engine.kvcache.eviction.lfu import LfuPolicy
from rhizome_engine.kvcache.eviction.lru import LruPolicy

PolicyFactory = Callable[[], EvictionPolicy]

EVICTION_POLICIES: dict[str, PolicyFactory] = {"lru": LruPolicy, "lfu": LfuPolicy, "fifo": FifoPolicy}
"""Policies that have a name; whoever embeds the engine may add one."""

_METHODS = ("add", "remove", "touch", "split", "cut", "victim")


def eviction_policy(name: str) -> EvictionPolicy:
    """Make a policy.

    Args:
        name: one of `EVICTION_POLICIES`, or `package.module:factory`, where the factory is a class or a
            function that takes no arguments.

    Raises:
        ValueError: there is no such policy, or what the path leads to is none; the message says which.
    """
    factory = EVICTION_POLICIES.get(name) or _imported(name)
    try:
        policy = factory()
    except Exception as error:
        raise ValueError(f"eviction policy {name!r} could not be made: {error}") from error
    missing = [method for method in _METHODS if not callable(getattr(policy, method, None))]
    if missing:
        raise ValueError(f"eviction policy {name!r} lacks the methods {', '.join(missing)}")
    return policy


def _imported(path: str) -> PolicyFactory:
    module, colon, attribute = path.partition(":")
    if not (module and colon and attribute):
        known = ", ".join(sorted(EVICTION_POLICIES))
        raise ValueError(f"eviction policy {path!r} is neither package.module:factory nor one of {known}")
    try:
        factory = getattr(import_module(module), attribute)
    except Exception as error:  # importing runs the module, which may raise anything
        raise ValueError(f"eviction policy {path!r} cannot be imported: {error}") from error
    if not callable(factory):
        raise ValueError(f"eviction policy {path!r} is a {type(factory).__name__}, not a class or a function")
    return cast(PolicyFactory, factory)
