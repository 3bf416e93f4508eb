"""`rhizome-proxy` as a process."""

from __future__ import annotations

import asyncio
import signal
from ipaddress import ip_network

import pytest

from rhizome_proxy.settings import parse_settings
from rhizome_testing.processes import ProcessFixture


@pytest.fixture
def start(tmp_path):
    started = []

    def run(*arguments: str, **environment: str) -> ProcessFixture:
        process = ProcessFixture.module(
            "rhizome_proxy",
            arguments,
            log_dir=tmp_path,
            environment=environment,
            name=f"proxy-{len(started)}",
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.terminate()


async def port_of(process: ProcessFixture) -> int:
    found = await asyncio.to_thread(process.wait_for_line, r"listening on port (\d+)")
    return int(found.group(1))


async def test_sigterm_finishes_what_is_open_and_exits_0(cluster, script, start, eventually):
    release = asyncio.Event()

    async def wait(peer, submit):
        await release.wait()
        await script.answer(peer, submit)

    engine = await cluster.engine(wait)
    process = start("--port", "0", "--backends", engine.address)
    peer = await cluster.peer_at(await port_of(process))
    await peer.submit("r1")
    await eventually(lambda: bool(engine.submits))
    process.signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait_for_line, "stopping")
    release.set()
    await peer.outcome("r1")
    assert await asyncio.to_thread(process.wait) == 0
    assert "Traceback" not in process.output


async def test_requests_that_outlast_the_grace_are_cut_off_and_the_exit_code_says_so(
    cluster, script, start, eventually
):
    engine = await cluster.engine(script.hold)
    process = start("--port", "0", "--drain-timeout-s", "0.2", BACKENDS=engine.address)
    peer = await cluster.peer_at(await port_of(process))
    await peer.submit("r1")
    await eventually(lambda: bool(engine.submits))
    process.signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait) == 1
    await eventually(lambda: engine.peers[0].gone)


async def test_a_taken_port_exits_1_with_a_line_that_says_so(cluster, start):
    engine = await cluster.engine()
    process = start("--port", str(engine.port), "--backends", "127.0.0.1:1")
    assert await asyncio.to_thread(process.wait) == 1
    assert "cannot listen on" in process.output
    assert "Traceback" not in process.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "no backends are given; use --backends"),
        (["--backends", "nonsense"], "--backends: 'nonsense' is no backend; write host:port"),
        (["--backends", "http://a:1?kind=magic"], "--backends: http://a:1 cannot be of kind 'magic'; use"),
        (["--backends", "http://a:1?events=b"], "--backends: 'b' must be one or two ZeroMQ addresses"),
        (["--backends", "http://ä:1"], "--backends: 'http://ä:1' is no backend; write http://host:port"),
        (["--backends", "a:1?key=b"], "--backends: a:1 is an engine of ours: no kind, key or events"),
        (["--backends", "a:1", "--policy", "magic"], "--policy: policy 'magic' is unknown; use one of cost"),
        (["--backends", "a:1", "--port", "70000"], "--port: "),
    ],
)
def test_wrong_settings_exit_2_with_a_line_each(arguments, text, capsys, monkeypatch):
    monkeypatch.delenv("BACKENDS", raising=False)
    with pytest.raises(SystemExit) as caught:
        parse_settings(arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_networks_are_written_in_the_same_way_everywhere(monkeypatch):
    networks = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    monkeypatch.setenv("BACKENDS", "a:1")
    assert parse_settings(["--trusted-proxies", "10.0.0.0/8,fd00::/8"]).trusted_proxies == networks
    monkeypatch.setenv("RHIZOME_PROXY_TRUSTED_PROXIES", "10.0.0.0/8,fd00::/8")
    assert parse_settings([]).trusted_proxies == networks


def test_settings_come_from_the_command_line_then_the_environment(monkeypatch):
    monkeypatch.setenv("BACKENDS", "seed:1")
    assert parse_settings([]).backends == "seed:1"
    monkeypatch.setenv("RHIZOME_PROXY_BACKENDS", "own:1")
    monkeypatch.setenv("RHIZOME_PROXY_PORT", "1234")
    assert (parse_settings([]).backends, parse_settings([]).port) == ("own:1", 1234)
    assert parse_settings(["--backends", "given:1,dns:///b:2"]).backends == "given:1,dns:///b:2"
