"""Where engines come from."""

from __future__ import annotations

import asyncio
import socket

import pytest

from rhizome_backends.base import Probe
from rhizome_backends.spec import BackendSpec, parse_specs
from rhizome_proxy.pool.backend import State
from rhizome_proxy.pool.discovery import Discovery
from rhizome_proxy.pool.health import HealthPoller
from rhizome_proxy.pool.registry import Registry


class Nothing:
    kind = "nothing"

    def __init__(self, spec: BackendSpec) -> None:
        self.spec = spec

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
    assert parse_specs(" a:1, [::1]:2 ,dns:///engines.local:3,") == (
        BackendSpec("a:1"),
        BackendSpec("[::1]:2"),
        BackendSpec("engines.local:3", resolve=True),
    )
    assert [(spec.host, spec.port, spec.http) for spec in parse_specs("a:1,[::1]:2,https://h/v")] == [
        ("a", 1, False), ("::1", 2, False), ("h", 443, True)
    ]  # fmt: skip
    assert parse_specs("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a:",
        ":1",
        "a:0",
        "a:65536",
        "a:b",
        "ftp://a:1",
        "::1:50051",
        "http://u@a:1",
        "dns+https://a:1",
        "http://:1",
        "a:1/x",
        "a:1,a:1",
        "dns://a:1",
    ],
)
def test_says_what_is_wrong_with_an_entry(text):
    with pytest.raises(ValueError, match=r"no backend; write host:port|named twice"):
        parse_specs(text)


def test_reads_options():
    text = "http://a:1/base/?kind=vllm&weight=2.5&priority=1&name=first&key=k"
    text += "&alias=gpt:real&alias=*:real,b:2?weight=3"
    first, second = parse_specs(text)
    assert first == BackendSpec(
        "http://a:1/base",
        name="first",
        kind="vllm",
        weight=2.5,
        priority=1,
        key="k",
        aliases={"gpt": "real", "*": "real"},
    )
    assert (second.name, second.weight) == ("b:2", 3.0)
    assert "key='k'" not in repr(first)


@pytest.mark.parametrize(
    "options", ["wieght=2", "weight=0", "weight=inf", "weight=x", "priority=1.5", "alias=gpt", "resolve=1"]
)
def test_says_what_is_wrong_with_an_option(options):
    with pytest.raises(ValueError, match=r"weight|priority|alias|no option"):
        parse_specs(f"a:1?{options}")


FILE = """
backends:
  - a:1
  - address: http://b:2
    name: b
    weight: 2
    key_file: b.key
    aliases: {gpt: real}
"""


async def test_a_file_is_read_again_when_it_changed(registry, tmp_path, eventually):
    path = tmp_path / "backends.yaml"
    (tmp_path / "b.key").write_text("secret\n")
    path.write_text(FILE)
    discovery = Discovery(parse_specs("fixed:1"), registry, 60, file=path)
    await discovery.start()
    assert names(registry) == ["a:1", "b", "fixed:1"]
    backend = registry.get("b")
    assert backend.spec == BackendSpec("http://b:2", "b", weight=2.0, key="secret", aliases={"gpt": "real"})
    running = asyncio.create_task(discovery.run())
    lease = backend.lease()
    path.write_text(FILE.replace("weight: 2", "weight: 4").replace("- a:1", "- c:3"))
    await eventually(lambda: names(registry) == ["b", "c:3", "fixed:1"])
    assert registry.get("b") is backend
    assert backend.weight == 4.0
    path.write_text("backends: {")
    await asyncio.sleep(1.5)  # longer than the file's pace: what cannot be read must change nothing
    assert names(registry) == ["b", "c:3", "fixed:1"]
    path.write_text("[d:4, {address: 'http://e:5', kind: magic}, 'http://ä:6']")
    await asyncio.sleep(1.5)
    assert names(registry) == ["b", "c:3", "fixed:1"], "neither must what cannot be a backend"
    path.write_text(FILE.replace("http://b:2", "http://b:3"))
    await eventually(lambda: names(registry) == ["a:1", "b", "b~1", "fixed:1"])
    assert registry.get("b~1") is backend
    assert backend.state is State.DRAINING
    lease.release()
    await eventually(lambda: names(registry) == ["a:1", "b", "fixed:1"])
    assert registry.get("b").spec.address == "http://b:3"
    running.cancel()


async def test_what_an_operator_removed_stays_away_until_it_is_listed_otherwise(registry, tmp_path):
    path = tmp_path / "backends.yaml"
    path.write_text("[{address: 'a:1', weight: 1}, 'b:2']")
    discovery = Discovery(parse_specs("fixed:1"), registry, 60, file=path)
    await discovery.start()
    await registry.remove("a:1")
    await registry.remove("fixed:1")
    await discovery.refresh()
    assert names(registry) == ["b:2"]
    path.write_text("[{address: 'a:1', weight: 2.5}, 'b:2']")
    await discovery.start()
    assert names(registry) == ["a:1", "b:2"]


async def test_http_backends_behind_a_name(registry, monkeypatch):
    discovery = Discovery(parse_specs("dns+http://engines:8000/v?weight=2"), registry, 60)
    answer_with(monkeypatch, "10.0.0.1", "::2")
    await discovery.start()
    assert names(registry) == ["http://10.0.0.1:8000/v", "http://[::2]:8000/v"]
    assert registry.get("http://[::2]:8000/v").weight == 2.0


async def test_a_list_is_the_pool(registry):
    await Discovery(parse_specs("a:1,b:2"), registry, 1.0).start()
    assert names(registry) == ["a:1", "b:2"]


async def test_every_address_of_a_name_is_an_engine(cluster, eventually):
    engine = await cluster.engine()
    proxy = await cluster.proxy(backends=f"dns:///localhost:{engine.port}")
    assert engine.address in names(proxy.registry)
    await eventually(lambda: proxy.registry.get(engine.address).ready)


async def test_follows_what_the_name_resolves_to(registry, monkeypatch, eventually):
    discovery = Discovery(parse_specs("fixed:1,dns:///engines:2"), registry, 0.01)
    answer_with(monkeypatch, "10.0.0.1", "10.0.0.2")
    await discovery.start()
    assert names(registry) == ["10.0.0.1:2", "10.0.0.2:2", "fixed:1"]
    running = asyncio.create_task(discovery.run())
    answer_with(monkeypatch, "10.0.0.2", "10.0.0.3")
    await eventually(lambda: names(registry) == ["10.0.0.2:2", "10.0.0.3:2", "fixed:1"])
    running.cancel()


async def test_an_engine_that_left_the_name_finishes_what_it_has(registry, monkeypatch, eventually):
    discovery = Discovery(parse_specs("dns:///engines:2"), registry, 60)
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
    discovery = Discovery(parse_specs("dns:///engines:2"), registry, 60)
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
    discovery = Discovery(parse_specs("dns:///engines:2"), registry, 60)
    answer_with(monkeypatch, "10.0.0.1")
    await discovery.start()
    answer_with(monkeypatch)
    await discovery.refresh()
    assert names(registry) == ["10.0.0.1:2"]
