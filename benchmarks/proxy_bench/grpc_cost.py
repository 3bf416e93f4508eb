"""The gRPC face: what it adds to a round trip, and how many tokens pass through one processor.

The engine is `rhizome_testing.metronome_engine`, which answers at once, or as fast as it is allowed to: with
frames that hold a token for each of 64 requests. Tokens are counted where they arrive.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Final

import grpc.aio
import psutil
from proxy_bench.bench import MODEL, Bench, measured
from proxy_bench.figures import Figure, medians

from rhizome.engine.v1.frames_pb2 import ClientFrame, Credit, EngineFrame, Hello, Submit
from rhizome.engine.v1.generate_pb2 import GenerateRequest, StopConditions, TokenIds
from rhizome_testing.cpu_clock import cpu_seconds
from rhizome_testing.metronome_engine import set_pace
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_transport.channel import ENGINE_SERVICE, PROTOCOL_VERSION
from rhizome_transport.grpc_client import GrpcEngineClient

STREAMS: Final = 64
_CREDIT: Final = 64
_PARSE_EVERY: Final = 16


async def measure(bench: Bench) -> list[Figure]:
    """Both, in rounds."""
    command = ["-m", "rhizome_testing.metronome_engine", "--model", str(MODEL), "--pace", "instant"]
    with ProcessFixture.module(command[1], command[2:], log_dir=bench.folder, name="metronome") as engine:
        found = await asyncio.to_thread(engine.wait_for_line, r"^serving on (\S+)$")
        target = found[1]
        with measured():
            proxy = ProxyProcess([target], bench.folder, "--log-level", "WARNING")
        with proxy:
            await asyncio.to_thread(proxy.wait_ready, 1)
            rounds = [await _round(bench, target, proxy) for _ in range(bench.rounds)]
    middle = medians(rounds)
    return [
        Figure("round trip of a request, p50 in ms", middle["p50_ms"], "", {"direct": middle["direct_ms"]}),
        Figure("added to a round trip, p50 in ms", middle["p50_ms"] - middle["direct_ms"], "<= 0.8"),
        Figure("tokens through one processor, per second of its time", middle["per_cpu_s"], ">= 150000"),
        Figure(
            "tokens per second that arrived", middle["per_s"], note=f"{middle['per_frame']:.0f} per frame"
        ),
    ]


async def _round(bench: Bench, target: str, proxy: ProxyProcess) -> dict[str, float]:
    await asyncio.to_thread(set_pace, target, "instant")
    direct = GrpcEngineClient(target, peer_name="direct")
    through = GrpcEngineClient(f"127.0.0.1:{proxy.port}", peer_name="through")
    times: dict[GrpcEngineClient, list[float]] = {direct: [], through: []}
    for number in range(int(bench.seconds(600))):
        for client, taken in times.items():
            began = time.perf_counter()
            async for _ in client.generate(_request(str(number), 1)):
                pass
            taken.append((time.perf_counter() - began) * 1e3)
        await asyncio.sleep(0.002)
    for client in times:
        await client.close()
    await asyncio.to_thread(set_pace, target, "saturate")
    flood = await _flood(bench, proxy)
    return {
        "direct_ms": statistics.median(times[direct][50:]),
        "p50_ms": statistics.median(times[through][50:]),
        **flood,
    }


async def _flood(bench: Bench, proxy: ProxyProcess) -> dict[str, float]:
    """One peer with 64 endless streams that reads as fast as it can."""
    process = psutil.Process(proxy.pid)
    frames = tokens = parsed = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{proxy.port}") as channel:
        call = channel.stream_stream(f"/{ENGINE_SERVICE}/Connect")()

        async def send(**frame: object) -> None:
            await call.write(ClientFrame(**frame).SerializeToString())  # type: ignore[arg-type]

        await send(hello=Hello(protocol_version=PROTOCOL_VERSION, peer_name="flood", initial_credit=_CREDIT))
        for number in range(STREAMS):
            await send(submit=Submit(request=_request(f"s{number}", 1 << 19)))

        async def read(seconds: float) -> None:
            nonlocal frames, tokens, parsed
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                frame = await call.read()
                frames += 1
                if frames % _PARSE_EVERY == 0:  # the reader must not be what is measured
                    parsed += 1
                    events = EngineFrame.FromString(frame).events
                    tokens += sum(len(event.response.delta.token_ids) for event in events)
                    await send(credit=Credit(frames=_PARSE_EVERY))

        await read(1.0)
        frames = tokens = parsed = 0
        began, spent = time.perf_counter(), cpu_seconds(process.pid)
        await read(bench.seconds(4))
        seconds, spent = time.perf_counter() - began, cpu_seconds(process.pid) - spent
        call.cancel()
    per_frame = tokens / parsed
    return {
        "per_frame": per_frame,
        "per_s": frames * per_frame / seconds,
        "per_cpu_s": frames * per_frame / spent,
    }


def _request(request_id: str, max_tokens: int) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        token_ids=TokenIds(ids=range(100, 164)),
        stop=StopConditions(max_tokens=max_tokens),
    )
