"""The front end of `benchmarks/transport.py`: what a gateway's process spends on its engine's frames.

rtt TRANSPORT TARGET COUNT         one request of one token after another: microseconds until it ended
stream TRANSPORT TARGET COUNT S    COUNT streams for S seconds: tokens, and processor time of this process
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop
from transport_bench.grpc_aio import GrpcAioEngineClient

from rhizome.engine.v1.generate_pb2 import GenerateRequest, StopConditions, TokenIds
from rhizome_transport.client import EngineClient
from rhizome_transport.endpoint import is_core_endpoint
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.request_stream import RequestStream
from rhizome_transport.zmq_client import ZmqEngineClient

WARM_UP = 200
WARM_UP_S = 0.7
PROMPT = TokenIds(ids=range(1, 129))


def connect(transport: str, target: str) -> EngineClient:
    """The client that a gateway has for such a target, or the reference."""
    if transport == "grpc.aio":
        return GrpcAioEngineClient(target, peer_name="bench")
    if is_core_endpoint(target):
        return ZmqEngineClient(target, peer_name="bench")
    return GrpcEngineClient(target, peer_name="bench")


async def round_trips(client: EngineClient, count: int) -> dict[str, float]:
    """One token each, one after another."""
    took: list[int] = []
    for number in range(WARM_UP + count):
        request = GenerateRequest(token_ids=PROMPT, stop=StopConditions(max_tokens=1))
        ended = asyncio.Event()
        began = time.perf_counter_ns()
        stream = await client.open(request, ended.set)
        while not stream.ended:
            ended.clear()
            await ended.wait()
        if number >= WARM_UP:
            took.append(time.perf_counter_ns() - began)
        stream.close()
    took.sort()
    return {
        "rtt_p50_us": took[len(took) // 2] / 1e3,
        "rtt_p99_us": took[len(took) * 99 // 100] / 1e3,
    }


class Reader:
    """Counts the tokens of one stream, as a gateway takes them."""

    def __init__(self, total: list[int]) -> None:
        self._total = total
        self.stream: RequestStream | None = None

    def take(self) -> None:
        """Called with news."""
        if self.stream is None:
            return
        total = self._total
        while (arrived := self.stream.take()) is not None:
            total[1] += 1
            if isinstance(arrived, list):
                total[0] += len(arrived)


async def streams(client: EngineClient, count: int, window_s: float) -> dict[str, float]:
    """Many requests at once."""
    total = [0, 0]  # tokens, and pieces they came in
    readers: list[Reader] = []
    for _ in range(count):
        reader = Reader(total)
        reader.stream = await client.open(GenerateRequest(token_ids=PROMPT), reader.take)
        readers.append(reader)
    await asyncio.sleep(WARM_UP_S)
    tokens, pieces = total
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.sleep(window_s)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    tokens, pieces = total[0] - tokens, total[1] - pieces
    for reader in readers:
        if reader.stream is not None:
            reader.stream.close()
    return {
        "tokens_per_s": tokens / wall_s,
        "tokens_per_cpu_s": tokens / cpu_s,
        "cpu_s_per_100k_tokens": cpu_s / tokens * 1e5,
        "tokens_per_piece": tokens / max(1, pieces),
        "busy": cpu_s / wall_s,
    }


async def measure(arguments: list[str]) -> dict[str, float]:
    """Run one measurement."""
    kind, transport, target, *numbers = arguments
    client = connect(transport, target)
    try:
        await client.load()
        if kind == "rtt":
            return await round_trips(client, int(numbers[0]))
        return await streams(client, int(numbers[0]), float(numbers[1]))
    finally:
        await client.close()


if __name__ == "__main__":
    print(json.dumps(uvloop.run(measure(sys.argv[1:]))))
