"""The proxy, servers of many kinds behind it, and streams through all of them: real processes, real ports."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Self

import psutil
from tests.chaos.wire import Wire

from rhizome_testing.proxy_process import ProxyProcess
from rhizome_testing.simulated_server import SimulatedServer
from rhizome_testing.storm import grpc_caller, http_caller
from rhizome_testing.storm.load import Load
from rhizome_testing.storm.outcome import HONEST, Ending, Outcome, counted
from rhizome_testing.storm.question import draw

ENGINES = 3
TOKENS = (15, 60)
DEADLINE_S = 20.0
STALL_S = 1.5
SILENCE_S = 4.0
"""An HTTP server that is silent for so long is given up by the proxy."""
LONGEST_S = 12.0
"""So is any request that takes so long, and its caller is told."""

_PHYSICS = ("--itl-base-ms", "12", "--itl-per-request-ms", "0.05")
MOSTLY = 0.9
_RECOVERY_S = 45.0
_LATE_S = 4.0
"""How late a machine with other work may be."""
_RSS_SLACK = 24 << 20
_SPARE_SOCKETS = 40
"""Listeners, and connections for checks, events and frames."""


class Arena:
    """Everything that a storm needs. Must be made inside the running loop.

    Args:
        folder: for logs.
        kinds: of the servers that speak HTTP.
        rate: streams per second, over both faces together.
        seed: of all chances.

    Attributes:
        engines: of the kind `rhizome`; the last one is behind `wire`.
        servers: of other kinds.
        proxy: in front of them.
        dice: for blows.
    """

    def __init__(self, folder: Path, kinds: Sequence[str], rate: float, seed: int) -> None:
        self._folder = folder
        self._kinds = kinds
        self._rate = rate
        self.dice = random.Random(seed)
        self._asks = random.Random(seed + 1)
        self.engines: list[SimulatedServer] = []
        self.servers: list[SimulatedServer] = []
        self.loads: dict[str, Load] = {}
        self._stack = AsyncExitStack()
        self._outages: list[tuple[float, float]] = []
        self._warm_rss = self._busiest = 0

    async def __aenter__(self) -> Self:
        async with self._stack:
            await self._start()
            self._stack = self._stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        for load in self.loads.values():
            load.cancel()
        await self._stack.aclose()

    async def _start(self) -> None:
        self.engines = [self._server("rhizome") for _ in range(ENGINES)]
        self.servers = [self._server(kind) for kind in self._kinds]
        for server in [*self.engines, *self.servers]:
            await asyncio.to_thread(server.wait_serving)
        # Nothing happens to them yet, and nobody else asks.
        ids = await grpc_caller.learn(self.engines[0].address, TOKENS[1])
        texts = await http_caller.learn(self.servers[0].port, TOKENS[1])
        self.wire = Wire(self.engines[-1].port)
        await self.wire.start()
        self._stack.push_async_callback(self.wire.stop)
        addresses = [server.address for server in [*self.engines[:-1], *self.servers]]
        self.proxy = self._stack.enter_context(
            ProxyProcess(
                [*addresses, f"127.0.0.1:{self.wire.port}"],
                self._folder,
                *("--stall-timeout-s", str(STALL_S), "--backend-timeout-s", str(LONGEST_S)),
                *("--first-byte-timeout-s", str(SILENCE_S), "--idle-timeout-s", str(SILENCE_S)),
                *("--log-level", "WARNING"),
                http=True,
            )
        )
        await asyncio.to_thread(self.proxy.wait_ready, len(self.engines) + len(self.servers))
        self._grpc = grpc_caller.GrpcCaller(f"127.0.0.1:{self.proxy.port}", ids)
        self._stack.push_async_callback(self._grpc.close)
        self._http = http_caller.HttpCaller(self.proxy.http_port, texts)

    def begin(self) -> None:
        """Let streams flow through both faces."""
        each = self._rate / 2
        self.loads = {
            "gRPC": Load(self._grpc.ask, lambda: draw(self._asks, *TOKENS, chat=False), each, DEADLINE_S),
            "HTTP": Load(
                self._http.ask,
                lambda: draw(self._asks, *TOKENS, chat=True, whole=0.2),
                each,
                DEADLINE_S,
                seed=1,
            ),
        }

    def note_level(self) -> None:
        """Remember what the proxy weighs while nothing happens to it."""
        self._warm_rss = self.proxy.rss_bytes

    def told(self) -> str:
        """What the proxy weighs now, beside what it did."""
        return (
            f"{self._warm_rss >> 20} MiB before, {self.proxy.rss_bytes >> 20} MiB after, "
            f"{self.proxy.sockets} sockets"
        )

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Nobody can answer in this block; honest errors are all that can be asked for."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._outages.append((began_s, time.monotonic()))

    def assert_mostly_exact(self, face: str, outcomes: list[Outcome]) -> None:
        """Where somebody could answer, most callers notice nothing; else a proxy could refuse them all."""
        possible = [
            one
            for one in outcomes
            if not any(began < one.ended_s and one.began_s < ended for began, ended in self._outages)
        ]
        exact = sum(one.ending is Ending.EXACT for one in possible)
        assert exact > MOSTLY * len(possible) > 0, f"{face}: {counted(possible)}"

    async def calm(self) -> None:
        """Heal everything, and wait until every server gets requests again, with streams flowing."""
        self.wire.flow()
        for server in [*self.engines, *self.servers]:
            server.start()
            await asyncio.to_thread(server.wait_serving)
            await asyncio.to_thread(server.heal)
        await asyncio.to_thread(self.proxy.wait_ready, len(self.engines) + len(self.servers), _RECOVERY_S)

    async def end(self) -> dict[str, list[Outcome]]:
        """Send nothing more; what became of everything, by face."""
        stopped = {face: await load.stop() for face, load in self.loads.items()}
        self._busiest = sum(load.most_open for load in self.loads.values())
        self.loads = {}
        return stopped

    async def assert_quiet(self) -> None:
        """Nothing is left of the requests: at the proxy, at the servers, between them."""
        proxy = self.proxy
        assert proxy.running, proxy.output[-3000:]
        await self._eventually(lambda: proxy.in_flight() == 0, lambda: f"{proxy.in_flight()} are in flight")
        for server in [*self.engines, *self.servers]:
            await self._eventually(
                lambda server=server: _busy(server) == 0,  # type: ignore[misc]
                lambda server=server: f"{server.name} still runs {_busy(server)} requests",  # type: ignore[misc]
            )
        await self._eventually(
            lambda: not self._client_connections(), lambda: f"open: {self._client_connections()}"
        )
        most = self._busiest + _SPARE_SOCKETS  # connections to servers are kept for the next request
        await self._eventually(
            lambda: proxy.sockets <= most, lambda: f"{proxy.sockets} sockets are open, not {most} at most"
        )
        grown = self.proxy.rss_bytes - self._warm_rss
        assert grown < _RSS_SLACK, f"the proxy grew by {grown >> 10} KiB"
        for sign in ("Traceback", "never retrieved", "was destroyed but it is pending"):
            assert sign not in proxy.output, proxy.output[-3000:]

    async def _eventually(self, true: Callable[[], bool], why: Callable[[], str]) -> None:
        deadline = time.monotonic() + 2 * SILENCE_S + DEADLINE_S
        while not await asyncio.to_thread(true):
            assert time.monotonic() < deadline, why()
            await asyncio.sleep(0.05)

    def _client_connections(self) -> list[str]:
        ports = {self.proxy.http_port}
        found = psutil.Process(self.proxy.pid).net_connections("tcp")
        return [f"{one.raddr} {one.status}" for one in found if one.laddr.port in ports and one.raddr]

    def _server(self, kind: str) -> SimulatedServer:
        options = (*_PHYSICS, "--model", str(_MODEL)) if kind == "rhizome" else _PHYSICS
        return self._stack.enter_context(SimulatedServer(kind, self._folder, *options))


def assert_honest(face: str, outcomes: list[Outcome]) -> None:
    """Every caller got a complete exact answer or was told that it did not."""
    wrong = [one for one in outcomes if one.ending not in HONEST]
    assert not wrong, f"{face}: {counted(outcomes)}\n" + "\n".join(str(one) for one in wrong[:10])
    late = [one for one in outcomes if one.ended_s - one.began_s > LONGEST_S + _LATE_S]
    assert not late, f"{face}: {len(late)} were not given up in time:\n" + "\n".join(map(str, late[:10]))


def _busy(server: SimulatedServer) -> int:
    state = server.state()
    return int(state["running"] + state["waiting"])


_MODEL = Path(__file__).parents[2] / "models" / "demo"
