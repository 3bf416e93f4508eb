"""Several simulated servers in one process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq

from rhizome_launcher.simulate.engine_service.server import EngineServer
from rhizome_launcher.simulate.flavours import FLAVOURS
from rhizome_launcher.simulate.http.server import HttpServer
from rhizome_launcher.simulate.physics import Physics
from rhizome_text.tokenizer_files import read_tokenizer_files

RHIZOME: Final = "rhizome"
KINDS: Final = (*FLAVOURS, RHIZOME)
_REPORT_EVERY_S: Final = 1.0


class FleetError(Exception):
    """A fleet that cannot start; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """What to simulate.

    Attributes:
        kind: one of `KINDS`.
        count: servers.
        host: address.
        port: of the first; the others follow. 0 takes free ones.
        model: served name.
        checkpoint: whose tokenizer the kind `rhizome` hands out.
        physics: how fast each is; each has noise of its own.
        speed: simulated seconds per second.
        context_tokens: most tokens of prompt and output together.
        default_max_tokens: length of answers where a request sets no limit.
        kv_events: ZeroMQ endpoint of the first server's KV events, or empty; the others take the next ports,
            or a number behind the path.
        kv_replay: endpoint where the first one's old messages can be had again, or empty.
        kv_events_as_lists: events as older versions of vLLM wrote them.
        faults: what is wrong from the start.
        verbose: print a line per server and second.
    """

    kind: str
    count: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    model: str = "simulated"
    checkpoint: Path = Path("models/demo")
    physics: Physics = field(default_factory=Physics)
    speed: float = 1.0
    context_tokens: int = 131_072
    default_max_tokens: int = 128
    kv_events: str = ""
    kv_replay: str = ""
    kv_events_as_lists: bool = False
    faults: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = False


async def run_fleet(settings: FleetSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        FleetError: an address is taken or a file is missing.
    """
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    servers: list[HttpServer | EngineServer] = []
    try:
        for index in range(settings.count):
            server = await _start(settings, index)
            servers.append(server)
            server.administration.break_down(settings.faults)
        reporting = asyncio.create_task(_report(servers)) if settings.verbose else None
        await stopping.wait()
        if reporting is not None:
            reporting.cancel()
    finally:
        for server in servers:
            if isinstance(server, EngineServer):
                await server.stop()
            else:
                server.stop()


async def _start(settings: FleetSettings, index: int) -> HttpServer | EngineServer:
    port = settings.port + index if settings.port else 0
    try:
        if settings.kind == RHIZOME:
            return await _start_engine(settings, port)
        return await _start_http(settings, port, index)
    except OSError as error:
        raise FleetError(f"{error.strerror or error}; choose another --port") from None


async def _start_engine(settings: FleetSettings, port: int) -> EngineServer:
    try:
        files = read_tokenizer_files(settings.checkpoint)
    except FileNotFoundError as error:
        raise FleetError(str(error)) from None
    engine = EngineServer(
        files,
        settings.physics,
        model=settings.model,
        speed=settings.speed,
        context_tokens=settings.context_tokens,
        default_max_tokens=settings.default_max_tokens,
    )
    await engine.start(settings.host, port)
    print(f"{settings.kind} grpc://{settings.host}:{engine.port}", end=" ")
    print(f"admin http://{settings.host}:{engine.admin_port}/simulate", flush=True)
    return engine


async def _start_http(settings: FleetSettings, port: int, index: int) -> HttpServer:
    server = HttpServer(
        FLAVOURS[settings.kind],
        settings.physics,
        model=settings.model,
        speed=settings.speed,
        context_tokens=settings.context_tokens,
        default_max_tokens=settings.default_max_tokens,
        watched=bool(settings.kv_events),
    )
    told = ""
    if settings.kv_events:
        from rhizome_launcher.simulate.kv_events import KvEventPublisher  # brings msgspec, which few need

        try:
            publisher = KvEventPublisher(
                nth_endpoint(settings.kv_events, index),
                server.engine.pool,
                settings.physics.block_size,
                replay=nth_endpoint(settings.kv_replay, index) if settings.kv_replay else "",
                as_lists=settings.kv_events_as_lists,
            )
        except zmq.ZMQError as error:
            raise FleetError(
                f"KV events: {error.strerror}; choose another --kv-events or --kv-replay"
            ) from None
        server.after_beat = publisher.publish
        told = f" kv-events {publisher.endpoint}"
        if publisher.replay_endpoint:
            told += f" replay {publisher.replay_endpoint}"
    await server.start(settings.host, port)
    print(f"{settings.kind} http://{settings.host}:{server.port}{told}", flush=True)
    return server


def nth_endpoint(endpoint: str, index: int) -> str:
    """The endpoint of one server among several."""
    head, _, port = endpoint.rpartition(":")
    if endpoint.startswith("tcp://") and port.isdecimal():
        return f"{head}:{int(port) + index if int(port) else 0}"
    return f"{endpoint}{index}" if index else endpoint


async def _report(servers: list[HttpServer | EngineServer]) -> None:
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        for server in servers:
            engine = server.engine
            print(
                f":{server.port} running {engine.running} waiting {engine.waiting} "
                f"kv {engine.kv_usage:.0%} hits {engine.hit_rate:.1%} "
                f"{engine.tokens_per_s(server.heart.now()):.0f} tokens/s",
                flush=True,
            )
