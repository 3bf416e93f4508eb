"""What the service costs: the engine through HTTP beside the engine alone, in the same minutes.

The shape is that of `engine_cpu.py` (a 135M-parameter Llama, random weights), prompts of 128 tokens, 33
out, at 1, 8 and 32 streams that start together (`--waves`). Alone is `rhizome bench engine`: scheduler,
cache and model in one process. Through HTTP is `rhizome serve` and `rhizome bench serve`, whose load
generator shares the processors with everybody else: it is part of the cost here. The two take turns,
round after round, and of each figure the best round counts, since noise only ever slows. Both ways of the
gateway to the engine are measured: over ZeroMQ to the engine's core (`direct`, the default for one
engine), and through its gRPC front.

Processor time at 32 streams is told besides, per output token with all that a request costs: of the gateway,
of the front and of the load generator, which is no part of a service. It holds on a busy machine too, unlike
the rates.

    python benchmarks/service_cost.py [--quantization int8] [--rounds 5] [--ways direct,grpc]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from engine_cpu import make_checkpoint

from rhizome_testing.cpu_clock import cpu_seconds
from rhizome_testing.ports import free_port

STREAMS = (1, 8, 32)
LENGTHS = ("--input-tokens", "128", "--output-tokens", "33")
LEVELS = ",".join(map(str, STREAMS))
WAVES = 12
"""Times that each load is measured in a round; the median counts."""
RHIZOME = [sys.executable, "-m", "rhizome_launcher"]
ROLES = {"gateway": "rhizome_gateway", "front": "rhizome_engine"}
"""Processes beside the engine's core, by the module that each runs."""
LOAD_GENERATOR = "load generator"

Rates = dict[int, float]
"""Decoded tokens per second, by streams."""
Costs = dict[str, float]
"""Microseconds of processor time per output token, by role."""


def alone(model: Path, quantization: str) -> Rates:
    """The engine in one process."""
    words = ["bench", "engine", "--model", str(model), "--rows", LEVELS, *LENGTHS, "--json", "-"]
    words += ["--repeat", str(WAVES), "--quantization", quantization]
    done = _run([*words, "--engine-option", "max_step_tokens=4096"])
    return {int(level["streams"]): level["decode_tok_s"] for level in done["levels"]}


def through_http(url: str, service: psutil.Process) -> tuple[Rates, Costs]:
    """The same load through the gateway."""
    rates: Rates = {}
    costs: Costs = {}
    for streams in STREAMS:
        words = ["bench", "serve", "--base-url", url, "--concurrency", str(streams), "--waves", *LENGTHS]
        words += ["--num-prompts", str(WAVES * streams), "--ignore-eos", "--json", "-"]
        before = _cpu_s(service)
        (level,) = _run(words)["levels"]
        rates[streams] = level["decode_tok_s"]
        used = {role: cpu_s - before[role] for role, cpu_s in _cpu_s(service).items()}
        used[LOAD_GENERATOR] = level["client_cpu_share"] * level["duration_s"]
        # That of the last level, which has most tokens: first requests and idling count for little there.
        costs = {role: cpu_s / level["output_tokens"] * 1e6 for role, cpu_s in used.items()}
    return rates, costs


def _cpu_s(service: psutil.Process) -> dict[str, float]:
    """Processor time that each role has used."""
    used = dict.fromkeys(ROLES, 0.0)
    for process in service.children(recursive=True):
        words = process.cmdline()
        for role, module in ROLES.items():
            if module in words:
                used[role] += cpu_seconds(process.pid)
    return used


@contextmanager
def serving(model: Path, quantization: str, way: str, folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A gateway and an engine, until the block ends: their address, and the process that started them."""
    port = free_port()
    words = ["serve", "--model", str(model), "--port", str(port), "--quantization", quantization]
    words += ["--direct" if way == "direct" else "--grpc", "--", "--max-step-tokens", "4096"]
    with (folder / f"serve-{way}.log").open("wb") as log:
        process = subprocess.Popen([*RHIZOME, *words], cwd=folder, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_ready(url, process)
        yield url, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quantization", default="int8", help="none, int8 or int4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default="direct,grpc")
    options = parser.parse_args()
    ways = options.ways.split(",")
    best: dict[str, Rates] = {name: dict.fromkeys(STREAMS, 0.0) for name in ("alone", *ways)}
    least: dict[str, Costs] = {way: {} for way in ways}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoint(folder / "model")
        for _ in range(options.rounds):
            _keep_best(best["alone"], alone(model, options.quantization))
            for way in ways:
                with serving(model, options.quantization, way, folder) as (url, service):
                    rates, costs = through_http(url, service)
                _keep_best(best[way], rates)
                for role, cost_us in costs.items():
                    least[way][role] = min(cost_us, least[way].get(role, cost_us))
    figures: dict[str, float] = {}
    print(f"{'decode tok/s':24}" + "".join(f"{streams:>12}" for streams in STREAMS))
    for way, rates in best.items():
        print(f"{way:24}" + "".join(f"{rates[streams]:12,.0f}" for streams in STREAMS))
        figures |= {f"{way}_decode_tok_s_{streams}": round(rates[streams], 1) for streams in STREAMS}
    for way in ways:
        cost = {streams: 1 - best[way][streams] / best["alone"][streams] for streams in STREAMS}
        print(f"{way + ' costs':24}" + "".join(f"{cost[streams]:12.1%}" for streams in STREAMS))
        figures |= {f"{way}_cost_percent_{streams}": round(100 * cost[streams], 1) for streams in STREAMS}
    for way, costs in least.items():
        for role, cost_us in costs.items():
            print(
                f"{f'{way}, {role}':24}{cost_us:12.0f} µs of a processor per token at {STREAMS[-1]} streams"
            )
            figures[f"{way}_{role.replace(' ', '_')}_us_per_token"] = round(cost_us, 1)
    print(json.dumps(figures))


def _keep_best(best: Rates, rates: Rates) -> None:
    for streams, rate in rates.items():
        best[streams] = max(best[streams], rate)


def _run(words: list[str]) -> dict[str, list[dict[str, float]]]:
    done = subprocess.run(
        [*RHIZOME, *words], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    found: dict[str, list[dict[str, float]]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _wait_ready(url: str, process: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("rhizome serve did not become ready")


if __name__ == "__main__":
    main()
