"""Health polling against real engines."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.base import Probe
from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, State
from rhizome_proxy.pool.health import HealthPoller
from rhizome_transport.errors import EngineError


async def only(proxy) -> Backend:
    (backend,) = proxy.registry
    return backend


async def test_up_down_up(cluster, eventually):
    engine = await cluster.engine(load=Load(running_requests=1, waiting_requests=0))
    backend = await only(await cluster.proxy(engine))
    assert (backend.state, backend.reason, backend.models) == (State.READY, "", ("scripted",))
    await eventually(lambda: backend.foreign_requests() == 1)
    await engine.kill()
    await eventually(lambda: backend.state is State.DOWN)
    assert "UNAVAILABLE" in backend.reason
    assert backend.foreign_requests() is None
    await engine.start()
    await eventually(lambda: backend.ready)


async def test_an_engine_without_its_model_is_down_and_says_so(cluster, eventually):
    engine = await cluster.engine()
    backend = await only(await cluster.proxy(engine))
    engine.set_serving(False)
    await eventually(lambda: not backend.ready)
    assert "NOT_SERVING" in backend.reason
    engine.set_serving(True)
    await eventually(lambda: backend.ready)


async def test_an_engine_that_reports_no_load_is_ready_with_load_unknown(cluster):
    backend = await only(await cluster.proxy(await cluster.engine(load=None)))
    assert backend.ready
    assert backend.foreign_requests() is None


async def test_somebody_else_on_that_port_is_down(cluster, eventually):
    proxy = await cluster.proxy(await cluster.engine())
    # Another kind of server: it closes every connection.
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    second = await cluster.proxy(backends=f"127.0.0.1:{port},127.0.0.1:{proxy.port}")
    inner, other = (second.registry.get(f"127.0.0.1:{one}") for one in (proxy.port, port))
    await eventually(lambda: inner.ready)  # a proxy is an engine, too
    await eventually(lambda: other.checked)
    assert other.state is State.DOWN
    server.close()


class Slow:
    """An engine whose checks end as the test says."""

    kind = "slow"

    def __init__(self, *outcomes) -> None:
        self.outcomes = list(outcomes)

    async def probe(self, timeout_s: float) -> Probe:
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


GOOD = Probe(serving=True, load=Load(running_requests=0, waiting_requests=0))
LATE = EngineError(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow")


@pytest.fixture
async def watch():
    tasks = []

    def start(backend: Backend, interval_s: float = 0.001, stall_s: float = 10.0) -> None:
        tasks.append(asyncio.create_task(HealthPoller(interval_s, 1.0, stall_s).watch(backend)))

    yield start
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_slow_engine_stays_ready_until_it_missed_several_checks(watch, eventually):
    engine = Slow(GOOD, LATE, LATE, GOOD, LATE, LATE, LATE)
    backend, states = Backend(BackendSpec("b:1", name="b"), engine), []
    backend.on_change = lambda: states.append((backend.state, len(engine.outcomes)))
    watch(backend)
    await eventually(lambda: backend.state is State.DOWN)
    assert states == [(State.READY, 6), (State.DOWN, 1)]


async def test_a_suspected_engine_is_checked_at_once(watch, eventually):
    backend = Backend(BackendSpec("b:1", name="b"), Slow(GOOD))
    watch(backend, interval_s=3600.0)
    await eventually(lambda: backend.ready)
    backend.suspect("its stream broke")
    assert not backend.ready
    await eventually(lambda: backend.ready)


async def test_a_broken_check_marks_down_and_goes_on(watch, eventually, caplog):
    backend = Backend(BackendSpec("b:1", name="b"), Slow(ValueError("odd"), GOOD))
    states = []
    backend.on_change = lambda: states.append(backend.state)
    watch(backend)
    await eventually(lambda: backend.ready)
    assert states == [State.DOWN, State.READY]


async def test_a_busy_engine_is_not_a_dead_one(watch, eventually):
    """Its checks are not answered, but its streams deliver."""

    class Busy(Slow):
        async def probe(self, timeout_s: float) -> Probe:
            await asyncio.sleep(0.001)
            backend.heard_at = time.monotonic()
            return await super().probe(timeout_s)

    backend, states, cut = Backend(BackendSpec("b:1", name="b"), Busy(GOOD, *[LATE] * 20, GOOD)), [], []
    backend.cuts.add(lambda: cut.append(True))
    backend.on_change = lambda: states.append(backend.state)
    watch(backend, stall_s=0.0)
    await eventually(lambda: len(backend.engine.outcomes) == 1)
    assert (states, cut) == ([State.READY], [])


async def test_a_silent_engine_is_given_up(watch, eventually):
    backend, cut = Backend(BackendSpec("b:1", name="b"), Slow(GOOD, LATE)), []
    backend.cuts.add(lambda: cut.append(True))
    watch(backend, stall_s=0.05)
    await eventually(lambda: bool(cut))
    assert backend.state is State.DOWN
