"""Where engines come from."""

from __future__ import annotations

import asyncio
import socket

import pytest

from rhizome_proxy.kinds.base import Probe
from rhizome_proxy.pool.backend import State
from rhizome_proxy.pool.discovery import Discovery, Target, parse_targets
from rhizome_proxy.pool.health import HealthPoller
from rhizome_proxy.pool.registry import Registry


class Nothing:
    kind = "nothing"

    def __init__(self, address: str) -> None:
        self.address = address

    async def probe(self, timeout_s: float) -> Probe:
        return Probe(serving=True)

    async def close(self) -> None:
        pass


@pytest.fixture
async def registry():
    registry = Registry(Nothing, HealthPoller(0.01, 1.0).watch)
    yield registry
    await registry.close()


def names(registry: Registry) -> list[str]:
    return [backend.name for backend in registry]


def answer_with(monkeypatch, *addresses: str) -> None:
    """Make the resolver know these addresses only."""

    async def getaddrinfo(host, port, **_):
        if not addresses:
            raise socket.gaierror(socket.EAI_AGAIN, "the resolver is down")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


def test_reads_a_list():
    assert parse_targets(" a:1, [::1]:2 ,dns:///engines.local:3,") == (
        Target("a", 1, False),
        Target("::1", 2, False),
        Target("engines.local", 3, True),
    )
    assert [target.address for target in parse_targets("a:1,[::1]:2")] == ["a:1", "[::1]:2"]
    assert parse_targets("") == ()


@pytest.mark.parametrize(
    "text", ["a", "a:", ":1", "a:0", "a:65536", "a:b", "http://a:1", "::1:50051", "a:1,a:1", "dns://a:1"]
)
def test_says_what_is_wrong_with_an_entry(text):
    with pytest.raises(ValueError, match=r"no engine; write host:port|named twice"):
        parse_targets(text)


async def test_a_list_is_the_pool(registry):
    await Discovery(parse_targets("a:1,b:2"), registry, 1.0).start()
    assert names(registry) == ["a:1", "b:2"]


async def test_every_address_of_a_name_is_an_engine(cluster):
    engine = await cluster.engine()
    proxy = await cluster.proxy(backends=f"dns:///localhost:{engine.port}")
    assert engine.address in names(proxy.registry)
    assert proxy.registry.get(engine.address).ready


async def test_follows_what_the_name_resolves_to(registry, monkeypatch, eventually):
    discovery = Discovery(parse_targets("fixed:1,dns:///engines:2"), registry, 0.01)
    answer_with(monkeypatch, "10.0.0.1", "10.0.0.2")
    await discovery.start()
    assert names(registry) == ["10.0.0.1:2", "10.0.0.2:2", "fixed:1"]
    running = asyncio.create_task(discovery.run())
    answer_with(monkeypatch, "10.0.0.2", "10.0.0.3")
    await eventually(lambda: names(registry) == ["10.0.0.2:2", "10.0.0.3:2", "fixed:1"])
    running.cancel()


async def test_an_engine_that_left_the_name_finishes_what_it_has(registry, monkeypatch, eventually):
    discovery = Discovery(parse_targets("dns:///engines:2"), registry, 60)
    answer_with(monkeypatch, "10.0.0.1", "10.0.0.2")
    await discovery.start()
    leaving = registry.get("10.0.0.1:2")
    lease = leaving.lease()
    answer_with(monkeypatch, "10.0.0.2")
    await discovery.refresh()
    assert leaving.state is State.DRAINING
    assert names(registry) == ["10.0.0.1:2", "10.0.0.2:2"]
    lease.release()
    await eventually(lambda: names(registry) == ["10.0.0.2:2"])


async def test_an_engine_that_comes_back_while_it_leaves_stays(registry, monkeypatch, eventually):
    discovery = Discovery(parse_targets("dns:///engines:2"), registry, 60)
    answer_with(monkeypatch, "10.0.0.1", "10.0.0.2")
    await discovery.start()
    backend = registry.get("10.0.0.1:2")
    lease = backend.lease()
    answer_with(monkeypatch, "10.0.0.2")
    await discovery.refresh()
    answer_with(monkeypatch, "10.0.0.1", "10.0.0.2")
    await discovery.refresh()
    lease.release()
    await eventually(lambda: backend.ready)
    assert registry.get("10.0.0.1:2") is backend


async def test_a_resolver_that_fails_changes_nothing(registry, monkeypatch):
    discovery = Discovery(parse_targets("dns:///engines:2"), registry, 60)
    answer_with(monkeypatch, "10.0.0.1")
    await discovery.start()
    answer_with(monkeypatch)
    await discovery.refresh()
    assert names(registry) == ["10.0.0.1:2"]
