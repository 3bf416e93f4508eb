"""Backends in any state."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, BackendRules


def make_backend(
    name: str,
    in_flight: int = 0,
    reported: int | None = None,
    *,
    weight: float = 1.0,
    priority: int = 0,
    waiting: int = 0,
    **load: object,
) -> Backend:
    """A backend with so many own requests, and a report of so many that are not ours."""
    spec = BackendSpec(f"{name}:1", name, weight=weight, priority=priority)
    made = Backend(spec, SimpleNamespace(kind="rhizome"), BackendRules(max_waiting=2))
    if reported is not None:
        made.observe_load(Load(running_requests=reported, waiting_requests=waiting, **load))
    for _ in range(in_flight):
        made.lease()
    return made


@pytest.fixture(name="make_backend", scope="session")
def _make_backend() -> Callable[..., Backend]:
    return make_backend
