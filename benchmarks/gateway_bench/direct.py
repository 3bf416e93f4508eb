"""First tokens of the engine itself, asked without any gateway: what is left when the gateway adds nothing.

The client is the gateway's own connection to the engine; requests, their times and the tokens in them are
those of `load.py first_tokens`. Prints one JSON line.

    python benchmarks/gateway_bench/direct.py --engine ipc:///tmp/engine.ipc --rate 200
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Callable

import uvloop
from arrivals import Arrivals, percentile

from rhizome.engine.v1.generate_pb2 import GenerateRequest, GenerateResponse
from rhizome_transport.grpc_client import GrpcEngineClient
from rhizome_transport.zmq_client import ZmqEngineClient

PROMPT_TOKENS = 20
"""About as many as the chat template makes of the other client's question."""
TTFT_TOKENS = 4


class Waiting:
    """One request until its end.

    Attributes:
        pump: to be called when something arrived.
        spoke_at: when the first token came, by `time.perf_counter`; 0 before.
        ended: done after the last one.
    """

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.spoke_at = 0.0
        self.take: Callable[[], list[int] | GenerateResponse | None] = lambda: None

    def pump(self) -> None:
        """Look at what arrived."""
        while (arrived := self.take()) is not None:
            ids = arrived.delta.token_ids if isinstance(arrived, GenerateResponse) else arrived
            if ids and not self.spoke_at:
                self.spoke_at = time.perf_counter()
            if isinstance(arrived, GenerateResponse) and arrived.HasField("finished"):
                self.ended.set_result(None)


async def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Ask as often as is said."""
    kind = ZmqEngineClient if arguments.engine.startswith("ipc://") else GrpcEngineClient
    client = kind(arguments.engine, peer_name="direct")
    await client.wait_ready(10)
    numbers = itertools.count()

    async def ask() -> float | None:
        asked_at = time.perf_counter()
        request = GenerateRequest(request_id=f"direct-{next(numbers)}")
        request.token_ids.ids.extend(range(1, PROMPT_TOKENS + 1))
        request.stop.max_tokens = TTFT_TOKENS
        waiting = Waiting()
        stream = await client.open(request, waiting.pump)
        waiting.take = stream.take
        waiting.pump()
        await waiting.ended
        stream.close()
        return (waiting.spoke_at - asked_at) * 1e3 if waiting.spoke_at else None

    waits_ms = await Arrivals(arguments.rate, arguments.warm_s, arguments.window_s).run(ask)
    await client.close()
    return {
        "requests_per_s": len(waits_ms) / arguments.window_s,
        "p50_ms": percentile(waits_ms, 50),
        "p99_ms": percentile(waits_ms, 99),
    }


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description="First tokens without a gateway.")
    parser.add_argument("--engine", required=True, help="host:port, or ipc://")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--warm-s", type=float, default=1.0)
    parser.add_argument("--window-s", type=float, default=5.0)
    figures = uvloop.run(measure(parser.parse_args()))
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in figures.items()}) + "\n")


if __name__ == "__main__":
    main()
