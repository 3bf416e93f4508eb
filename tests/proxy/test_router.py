"""Who gets requests for a model."""

from __future__ import annotations

import asyncio

from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.registry import Registry
from rhizome_proxy.router import Router
from rhizome_routing.admission import Admissions, AdmissionSettings, Fleet
from rhizome_routing.policies import POLICIES


class Nothing:
    kind = "rhizome"

    async def close(self) -> None:
        pass


async def watch(backend):
    await asyncio.Event().wait()


async def test_a_backend_whose_models_are_not_known_yet_may_have_it():
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


async def test_names_of_one_model_at_the_same_backends_share_a_queue():
    registry = Registry(lambda spec: Nothing(), watch)
    fleet = Fleet(lambda group: router.taking(group))
    router = Router(registry, POLICIES["least_loaded"](), admissions=Admissions(AdmissionSettings(), fleet))

    def queues(*names: str) -> int:
        return len({id(router.queue(name, http=False)) for name in names})

    aliases = {"short": "m", "same": "m", "half": "m", "other": "n"}
    registry.add(BackendSpec("a:1", aliases=aliases)).mark_ready(("m", "n"))
    assert queues("m", "short", "same", "half") == 1
    assert queues("m", "n") == queues("short", "other") == 2
    assert queues("n", "other") == 1
    assert queues("unknown", "neither", "") == 1
    second = registry.add(BackendSpec("b:1", aliases={"short": "m", "same": "n"}))
    second.mark_ready(("m", "n"))
    assert queues("m", "short") == 1
    assert queues("m", "same", "half") == 3, "they go to other backends, or mean other models there"
    await registry.close()
