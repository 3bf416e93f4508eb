"""The thresholds that deployments of other proxies already set, under their names."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from rhizome.engine.v1.load_pb2 import Load
from rhizome_backends.spec import BackendSpec
from rhizome_proxy.pool.backend import Backend, BackendRules
from rhizome_proxy.settings import parse_settings

NAMES = {
    "BACKENDS": "a:1,b:2",
    "MAX_ALLOWED_REQUEST_QUEUE": "6",
    "MAX_ALLOWED_DEFERRED": "3",
    "METRICS_CACHE_TTL_SECONDS": "3",
    "BACKEND_TIMEOUT_SECONDS": "300",
}


def test_the_common_names_are_understood_and_the_own_ones_win(monkeypatch):
    for name, value in NAMES.items():
        monkeypatch.setenv(name, value)
    settings = parse_settings([])
    rules = settings.backend_rules()
    assert (settings.backends, settings.poll_interval_s, settings.backend_timeout_s) == (
        "a:1,b:2",
        3.0,
        300.0,
    )
    assert (rules.max_running, rules.max_waiting) == (6, 3)
    assert rules.load_max_age_s > 2 * settings.poll_interval_s  # the longest time between two checks
    settings = parse_settings(["--backends", "c:3", "--max-allowed-request-queue", "2"])
    assert (settings.backends, settings.max_allowed_request_queue) == ("c:3", 2)


@pytest.mark.parametrize(
    ("own", "load", "busy"),
    [
        (2, None, False),
        (3, None, True),  # its own count needs no report
        (0, Load(running_requests=2, waiting_requests=1), False),
        (0, Load(running_requests=3, waiting_requests=0), True),
        (0, Load(running_requests=0, waiting_requests=2), True),
        (0, Load(running_requests=9), False),  # half a report says nothing
    ],
)
async def test_over_a_threshold_is_busy(own, load, busy):
    backend = Backend(BackendSpec("b:1", name="b"), None, BackendRules(max_running=2, max_waiting=1))
    backend.observe_load(load, 0)
    for _ in range(own):
        backend.lease()
    assert backend.busy is busy


async def test_a_busy_engine_gets_requests_only_when_all_are(cluster, script, eventually):
    first, second = await cluster.engine(script.start_and_hold), await cluster.engine(script.start_and_hold)
    proxy = await cluster.proxy(
        first, second, max_allowed_request_queue=1, policy="round_robin", max_queued=0
    )
    peer = await cluster.peer(proxy)
    proxy.registry.get(second.address).lease()
    proxy.registry.get(second.address).lease()
    for number in range(2):
        await peer.submit(f"r{number}")
        await peer.wait_events(f"r{number}", 1)
    assert (len(first.submits), len(second.submits)) == (2, 0)
    await peer.submit("r2")
    await peer.wait_events("r2", 1)
    await peer.submit("r3")
    await peer.wait_events("r3", 1)
    assert len(second.submits) > 0
    for engine in (first, second):
        engine.script = script.refuse(script.full)
    await peer.submit("r4")
    error = await peer.error("r4")
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 1.0)


async def test_the_longest_time_of_a_request(cluster, script):
    engine = await cluster.engine()
    peer = await cluster.peer(await cluster.proxy(engine, backend_timeout_s=300.0))
    for name, given, most in (("none", {}, 300), ("less", {"timeout": {"seconds": 7}}, 7)):
        began = time.monotonic()
        await peer.submit(name, **given)
        await peer.outcome(name)
        took = time.monotonic() - began
        assert most - took <= engine.submits[-1].timeout.ToNanoseconds() / 1e9 <= most
    await asyncio.sleep(0)
