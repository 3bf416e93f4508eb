"""Several proxies behind one address that deals out connections, as a Service of Kubernetes does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_testing.simulated_server import SimulatedServer
from rhizome_transport.grpc_client import GrpcEngineClient

LONG = 300


class Switch:
    """Passes each new connection on to the port that is named at that moment."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.connections = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        """Its port, until the end of the block."""
        passing: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            there = await asyncio.open_connection("127.0.0.1", self.to)
            for pair in ((reader, there[1]), (there[0], writer)):
                passing.add(asyncio.create_task(_pass_on(*pair)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer):
        while data := await reader.read(65536):
            writer.write(data)


async def ask(client: GrpcEngineClient, tokens: int, begun: asyncio.Event | None = None) -> int:
    """How many tokens came."""
    asked, count = GenerateRequest(), 0
    asked.token_ids.ids.extend((1, 2, 3))
    asked.stop.max_tokens = tokens
    asked.sampling.temperature = 0
    async for event in client.generate(asked, timeout_s=60):
        count += len(event.delta.token_ids)
        if count and begun is not None:
            begun.set()
    return count


async def test_who_asks_goes_to_another_proxy_while_the_first_one_finishes_a_long_answer(
    tmp_path: Path,
) -> None:
    with SimulatedServer("rhizome", tmp_path, "--itl-base-ms", "20") as engine:
        await asyncio.to_thread(engine.wait_serving)
        with (
            ProxyProcess([engine.address], tmp_path, "--drain-timeout-s", "60", name="old") as old,
            ProxyProcess([engine.address], tmp_path, name="new") as new,
        ):
            for proxy in (old, new):
                await asyncio.to_thread(proxy.wait_ready, 1)
            switch = Switch(old.port)
            async with switch.listen() as port:
                client = GrpcEngineClient(f"127.0.0.1:{port}", peer_name="gateway")
                try:
                    begun = asyncio.Event()
                    long = asyncio.create_task(ask(client, LONG, begun))
                    await asyncio.wait_for(begun.wait(), 60)
                    switch.to = new.port  # as Kubernetes does when a pod is to end
                    old.signal(signal.SIGTERM)
                    await asyncio.to_thread(old.wait_for_line, "stopping", 60)
                    for _ in range(5):
                        assert await ask(client, 3) == 3
                        assert (await client.model_info()).model == "simulated"
                    assert not long.done(), "the old one had nothing to finish; the test shows nothing"
                    assert old.running
                    assert await long == LONG
                    assert await asyncio.to_thread(old.wait, 60) == 0
                    assert switch.connections <= 4, "no more connections than it takes"
                finally:
                    await client.close()
