"""The engine of `benchmarks/transport.py`: frames at a steady pace over one transport, without a model."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import uvloop

from rhizome_testing.metronome import Pace
from rhizome_testing.metronome_engine import MetronomeEngine
from rhizome_text.tokenizer_files import read_tokenizer_files

MODEL = Path(__file__).parents[2] / "models" / "demo"


async def serve(transport: str, folder: str) -> None:
    """Serve until SIGTERM."""
    endpoint = f"ipc://{folder}/engine.ipc" if transport == "zeromq-ipc" else ""
    engine = MetronomeEngine(read_tokenizer_files(MODEL), Pace("instant"), endpoint=endpoint)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    uds = f"unix:{folder}/engine.sock" if transport == "grpc-uds" else ""
    await engine.start(uds or "127.0.0.1:0")
    control = uds or engine.target  # the pace is set over gRPC in each case
    print(f"serving {control} {endpoint or control}", flush=True)
    await stopping.wait()
    await engine.stop()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:3]))
