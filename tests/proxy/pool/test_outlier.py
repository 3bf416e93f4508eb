"""Ejection, the one trial afterwards, the slow start; on a clock of the test's own, and in the pool."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, BackendRules, State
from rhizome_proxy.pool.registry import Registry
from rhizome_routing.outlier import Outlier, OutlierRules
from rhizome_transport.errors import EngineError


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(**rules) -> tuple[Outlier, Clock]:
    clock = Clock()
    return Outlier(OutlierRules(**rules), clock=clock), clock


def ejected_for(outlier: Outlier, clock: Clock) -> float:
    began = clock.now
    while outlier.ejected:
        clock.now += 0.05
    return clock.now - began


def test_failures_in_a_row_eject_and_a_success_between_them_does_not():
    outlier, _ = make(failures=3)
    for _ in range(5):
        outlier.failed()
        outlier.failed()
        outlier.succeeded()
    assert not outlier.ejected
    for _ in range(3):
        outlier.failed()
    assert outlier.ejected


def test_the_time_doubles_to_a_minute_and_begins_anew_after_a_calm_one():
    outlier, clock = make(failures=1)
    times = []
    for _ in range(9):
        outlier.failed()
        times.append(ejected_for(outlier, clock))
        assert outlier.begin()
    assert times == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], rel=0.15)
    outlier.succeeded()
    clock.now += 61
    outlier.failed()
    assert ejected_for(outlier, clock) == pytest.approx(1, rel=0.15)


def test_half_open_admits_one_request():
    outlier, clock = make(failures=1)
    outlier.failed()
    ejected_for(outlier, clock)
    assert not outlier.ejected and outlier.begin()
    assert outlier.ejected and not outlier.begin()
    outlier.succeeded()
    assert not outlier.ejected and not outlier.begin()


def test_the_share_grows_after_a_return():
    outlier, clock = make(failures=1, slow_start_s=10.0)
    assert outlier.weight == 1.0
    outlier.failed()
    ejected_for(outlier, clock)
    outlier.begin()
    outlier.succeeded()
    weights = []
    for _ in range(12):
        weights.append(outlier.weight)
        clock.now += 1.0
    assert weights == sorted(weights) and weights[0] == 0.1 and weights[5] == pytest.approx(0.5)
    assert weights[-1] == 1.0


class OutlierMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.outlier, self.clock = make(failures=2)
        self.trials = 0

    @rule(seconds=st.floats(0.0, 70.0))
    def wait(self, seconds):
        self.clock.now += seconds

    @precondition(lambda self: not self.outlier.ejected)
    @rule()
    def send(self):
        self.trials += self.outlier.begin()

    @rule()
    def fail(self):
        self.outlier.failed()
        self.trials = int(self.outlier.trial)

    @rule()
    def succeed(self):
        self.outlier.succeeded()
        self.trials = int(self.outlier.trial)

    @invariant()
    def one_trial_at_most_and_no_ejection_for_ever(self):
        assert self.trials <= 1
        assert 0.0 < self.outlier.weight <= 1.0
        if self.outlier.ejected and not self.outlier.trial:
            assert self.outlier.until - self.clock.now <= 66.1


TestOutlierMachine = OutlierMachine.TestCase


async def test_a_cancelled_trial_leaves_the_next_request_the_trial():
    backend = Backend(BackendSpec("b:1", name="b"), None, BackendRules(outlier=OutlierRules(failures=1)))
    backend.mark_ready()
    backend.outlier._clock = clock = Clock()
    backend.outlier.failed()
    clock.now += 2
    lease = backend.lease()
    assert backend.state is State.EJECTED
    lease.release()
    assert backend.ready
    backend.lease()
    assert not backend.ready


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (4, 2), (5, 2)])
async def test_at_most_half_of_the_backends_are_ejected(count, most):
    async def watch(backend: Backend) -> None:
        await asyncio.Event().wait()

    class Closable:
        kind = "none"

        async def close(self) -> None:
            pass

    registry = Registry(lambda address: Closable(), watch, BackendRules(outlier=OutlierRules(failures=1)))
    for number in range(count):
        registry.add(BackendSpec(f"b{number}:1")).mark_ready()
    for backend in registry:
        backend.outlier.failed()
    assert sum(backend.state is State.EJECTED for backend in registry) == most
    # When the others are down, a doubtful one is better than none.
    for backend in registry:
        if backend.state is not State.EJECTED:
            backend.mark_down("gone")
    assert len(registry.ready()) == most
    await registry.close()


async def test_an_engine_that_breaks_every_stream_gets_one_request_at_a_time(
    cluster, script, eventually, monkeypatch
):
    monkeypatch.setattr("rhizome_routing.outlier._BASE_S", 3.0)  # longer than the ten requests below take
    broken, fine = await cluster.engine(), await cluster.engine()

    async def break_off(peer, submit):
        await peer.context.abort(14, "broken")

    broken.script = break_off
    proxy = await cluster.proxy(broken, fine, eject_after=2)
    backend = proxy.registry.get(broken.address)
    peer = await cluster.peer(proxy)
    number = 0
    async with asyncio.timeout(30):
        while backend.state is not State.EJECTED:
            await peer.submit(f"r{number}")
            await peer.outcome(f"r{number}")
            assert len(peer.tokens(f"r{number}")) == 3
            number += 1
            await asyncio.sleep(0.01)
    assert len(broken.submits) == 2
    for _ in range(10):
        number += 1
        await peer.submit(f"r{number}")
        await peer.outcome(f"r{number}")
    assert len(broken.submits) == 2
    broken.script = script.answer
    await eventually(lambda: backend.ready)
    for _ in range(20):
        number += 1
        await peer.submit(f"r{number}")
        await peer.outcome(f"r{number}")
    assert len(broken.submits) > 2 and backend.state is State.READY and backend.weight < 1.0


async def test_what_clients_do_wrong_ejects_nobody(cluster, script):
    wrong = EngineError(grpc.StatusCode.INVALID_ARGUMENT, "no")
    engines = [await cluster.engine(script.refuse(wrong)), await cluster.engine(script.refuse(script.full))]
    proxy = await cluster.proxy(*engines, eject_after=1, max_ejected=1.0)
    peer = await cluster.peer(proxy)
    for number in range(20):
        await peer.submit(f"r{number}")
        await peer.outcome(f"r{number}")
    for engine in engines:
        engine.script = script.start_and_hold
    for number in range(20, 40):
        await peer.submit(f"r{number}")
        await peer.cancel(f"r{number}")
        await peer.outcome(f"r{number}")
    assert all(backend.state is State.READY for backend in proxy.registry)
