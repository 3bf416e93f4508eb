"""Who gets requests for a model."""

from __future__ import annotations

import asyncio

from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.registry import Registry
from rhizome_proxy.router import Router
from rhizome_routing.policies import POLICIES


class Nothing:
    kind = "rhizome"

    async def close(self) -> None:
        pass


async def test_a_backend_whose_models_are_not_known_yet_may_have_it():
    async def watch(backend):
        await asyncio.Event().wait()

    registry = Registry(lambda spec: Nothing(), watch)
    router = Router(registry, POLICIES["least_loaded"]())
    known, fresh = registry.add(BackendSpec("a:1")), registry.add(BackendSpec("b:1"))
    known.mark_ready(("m",))
    fresh.mark_ready()
    assert router.serving("m", http=False) == [known, fresh]
    known.mark_down("gone")
    assert router.serving("m", http=False) == [fresh]
    fresh.mark_ready(("other",))
    assert router.serving("m", http=False) == []
    await registry.close()
