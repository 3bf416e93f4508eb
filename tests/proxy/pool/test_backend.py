"""One backend's counts and states."""

from __future__ import annotations

import asyncio

from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, State


def make() -> Backend:
    return Backend(BackendSpec("b:1", name="b"), None)


async def test_a_lease_is_given_back_once():
    backend = make()
    lease = backend.lease()
    assert (backend.in_flight, backend.total) == (1, 1)
    lease.release(failed=True)
    lease.release(failed=True)
    assert (backend.in_flight, backend.total, backend.failed) == (0, 1, 1)


async def test_idle_is_when_the_last_lease_is_back():
    backend = make()
    leases = [backend.lease() for _ in range(2)]
    waiting = asyncio.create_task(backend.wait_idle())
    leases[0].release()
    await asyncio.sleep(0)
    assert not waiting.done()
    leases[1].release()
    await asyncio.wait_for(waiting, 5)


async def test_begins_unknown_and_gets_nothing():
    backend = make()
    assert (backend.state, backend.ready, backend.checked) == (State.UNKNOWN, False, False)


async def test_draining_wins_over_health():
    backend = make()
    backend.mark_ready()
    backend.drain()
    backend.mark_ready()
    assert (backend.state, backend.ready) == (State.DRAINING, False)
    backend.drain(False)
    assert (backend.state, backend.ready) == (State.READY, True)


async def test_suspicion_takes_it_out_at_once_and_asks_for_a_check():
    backend, asked = make(), []
    backend.on_suspect = lambda: asked.append(True)
    backend.mark_ready()
    backend.suspect("its stream broke")
    assert (backend.state, backend.reason, asked) == (State.DOWN, "its stream broke", [True])


async def test_tells_of_changes_only():
    backend, changes = make(), []
    backend.on_change = lambda: changes.append(backend.state)
    backend.mark_ready()
    backend.mark_ready()
    backend.mark_down("gone")
    backend.mark_down("still gone")
    assert changes == [State.READY, State.DOWN]
    assert backend.reason == "still gone"
