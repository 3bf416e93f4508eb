"""Everything is restarted, one after another, under streams: what callers notice.

Engines over gRPC get SIGTERM and end at once, so their streams go on elsewhere. HTTP servers do that as well,
and once more after the proxy drained them (`DrainBackend`), as an operator would. Two proxies stand behind
nginx, which spreads gRPC and HTTP over them; each gets SIGTERM, finishes what it has, and is started again.
No client tries anything twice.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from proxy_bench.bench import Bench, progress
from proxy_bench.failover import DEADLINE_S, RATE, TOKENS, engines, start_proxy
from proxy_bench.figures import Figure
from proxy_bench.peers import program

from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_testing.simulated_server import SimulatedServer
from rhizome_testing.storm import grpc_caller, http_caller
from rhizome_testing.storm.load import Load
from rhizome_testing.storm.outcome import Ending, Outcome
from rhizome_testing.storm.question import draw

ENGINES: Final = 3
CLIENTS: Final = 4
_DRAIN_S: Final = 20.0


async def measure(bench: Bench) -> list[Figure]:
    """Engines over both faces, then the proxy itself."""
    figures = []
    async with engines("rhizome", bench, count=ENGINES) as (teacher, servers):
        ids = await grpc_caller.learn(teacher.address, TOKENS[1])
        proxy = start_proxy(bench, servers, http=False, name="rolling-grpc")
        with proxy:
            await asyncio.to_thread(proxy.wait_ready, ENGINES)
            async with _grpc_load([proxy.port], ids) as load:
                await _engines_one_by_one(proxy, servers, drained=False)
        figures += _told("gRPC, every engine, SIGTERM", load)
        if program("nginx"):
            async with _behind_nginx(bench, servers) as (proxies, port, _), _grpc_load([port], ids) as load:
                await _proxies_one_by_one(bench, servers, proxies)
            figures += _told("gRPC, the proxy behind nginx", load)
    async with engines("vllm", bench, count=ENGINES) as (teacher, servers):
        texts = await http_caller.learn(teacher.port, TOKENS[1])
        for drained in (True, False):
            way = "drained first" if drained else "SIGTERM only"
            proxy = start_proxy(bench, servers, http=True, name=f"rolling-http-{drained}")
            with proxy:
                await asyncio.to_thread(proxy.wait_ready, ENGINES)
                async with _http_load(proxy.http_port, texts) as load:
                    await _engines_one_by_one(proxy, servers, drained=drained)
            figures += _told(f"HTTP, every server, {way}", load)
        if program("nginx"):
            async with _behind_nginx(bench, servers) as (proxies, _, port), _http_load(port, texts) as load:
                await _proxies_one_by_one(bench, servers, proxies)
            figures += _told("HTTP, the proxy behind nginx", load)
    return figures


def _told(what: str, load: Load) -> list[Figure]:
    progress(what)
    failed = [one for one in load.outcomes if one.ending is not Ending.EXACT]
    return [
        Figure(f"{what}: requests", len(load.outcomes)),
        Figure(f"{what}: failed", len(failed), "<= 0", note=_first(failed)),
    ]


def _first(failed: Sequence[Outcome]) -> str:
    return f"the first: {failed[0].ending.value}, {failed[0].detail[:200]}" if failed else ""


async def _engines_one_by_one(
    proxy: ProxyProcess, servers: Sequence[SimulatedServer], *, drained: bool
) -> None:
    await asyncio.sleep(1.0)
    for server in servers:
        if drained:
            await asyncio.to_thread(proxy.drain_backend, server.address, _DRAIN_S)
        await asyncio.to_thread(server.restart)
        await asyncio.to_thread(server.wait_serving)
        if drained:
            await asyncio.to_thread(proxy.add_backend, server.address)
        await asyncio.to_thread(proxy.wait_ready, len(servers))
    await asyncio.sleep(1.0)


async def _proxies_one_by_one(
    bench: Bench, servers: Sequence[SimulatedServer], proxies: list[ProxyProcess]
) -> None:
    await asyncio.sleep(1.0)
    for number, proxy in enumerate(tuple(proxies)):
        proxy.signal(signal.SIGTERM)
        await asyncio.to_thread(proxy.wait, _DRAIN_S + DEADLINE_S)
        proxy.terminate()
        proxies[number] = _start(bench, servers, number, "again", proxy.ports)
        await asyncio.to_thread(proxies[number].wait_ready, len(servers))
        await asyncio.sleep(1.0)


def _start(
    bench: Bench, servers: Sequence[SimulatedServer], number: int, when: str, ports: Sequence[int] = ()
) -> ProxyProcess:
    name = f"rolling-{servers[0].kind}-{number}-{when}"
    return start_proxy(bench, servers, http=True, name=name, ports=ports)


@asynccontextmanager
async def _grpc_load(ports: Sequence[int], answers: dict[Any, list[int]]) -> AsyncIterator[Load]:
    """Several clients, as several gateways are."""
    callers = [grpc_caller.GrpcCaller(f"127.0.0.1:{port}", answers) for port in [*ports] * CLIENTS]
    turns, dice = iter(range(1 << 62)), random.Random(0)

    def ask(question: Any, deadline_s: float) -> Any:
        return callers[next(turns) % len(callers)].ask(question, deadline_s)

    load = Load(ask, lambda: draw(dice, *TOKENS, chat=False), RATE, DEADLINE_S)
    try:
        yield load
        await load.stop()
    finally:
        load.cancel()
        for caller in callers:
            await caller.close()


@asynccontextmanager
async def _http_load(port: int, answers: dict[Any, str]) -> AsyncIterator[Load]:
    dice = random.Random(0)
    ask = http_caller.HttpCaller(port, answers).ask
    load = Load(ask, lambda: draw(dice, *TOKENS, chat=True, whole=0.2), RATE, DEADLINE_S)
    try:
        yield load
        await load.stop()
    finally:
        load.cancel()


@asynccontextmanager
async def _behind_nginx(
    bench: Bench, servers: Sequence[SimulatedServer]
) -> AsyncIterator[tuple[list[ProxyProcess], int, int]]:
    """Two proxies, and nginx's ports for gRPC and HTTP."""
    grpc_port, http_port = free_ports(2)
    home = bench.folder / f"nginx-{servers[0].kind}"
    home.mkdir()
    async with AsyncExitStack() as stack:
        proxies = [_start(bench, servers, number, "first") for number in range(2)]
        stack.callback(lambda: [proxy.terminate() for proxy in proxies])
        for proxy in proxies:
            await asyncio.to_thread(proxy.wait_ready, len(servers))
        (home / "nginx.conf").write_text(_configuration(home, grpc_port, http_port, proxies))
        command = [program("nginx") or "", "-c", str(home / "nginx.conf"), "-p", str(home)]
        nginx = ProcessFixture([*command, "-e", str(home / "early.log")], log=home / "out.log", name="nginx")
        stack.enter_context(nginx)
        await asyncio.to_thread(nginx.wait_for_port, http_port)
        yield proxies, grpc_port, http_port


def _configuration(home: Path, grpc_port: int, http_port: int, proxies: Sequence[ProxyProcess]) -> str:
    # A proxy that is away refuses connections, which costs nothing to find out each time. Who is left out for
    # a while after a failure may be missing when it is the turn of the other one to go.
    grpc = " ".join(f"server 127.0.0.1:{proxy.port} max_fails=0;" for proxy in proxies)
    http = " ".join(f"server 127.0.0.1:{proxy.http_port} max_fails=0;" for proxy in proxies)
    return f"""daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log warn;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {home}/b; proxy_temp_path {home}/p;
  fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  upstream engines {{ {grpc} }}
  upstream chats {{ {http} keepalive 64; }}
  server {{ listen 127.0.0.1:{grpc_port} http2; client_max_body_size 0; client_body_timeout 1h;
    location / {{ grpc_pass grpc://engines; grpc_read_timeout 1h; grpc_send_timeout 1h;
      grpc_next_upstream error timeout http_503 non_idempotent; }} }}
  server {{ listen 127.0.0.1:{http_port};
    location / {{ proxy_pass http://chats; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_next_upstream error timeout http_503 non_idempotent; }} }}
}}
"""
