"""What tracing costs: a stack that samples beside one that does not, loaded by turns in the same minute.

Both are a gateway, a proxy and an engine with the bundled model, in processes of their own; the traced ones
export over OTLP to a sink in this process that throws everything away. In each round every stack gets the
same load from `rhizome bench serve`. Two figures: the rate of tokens, whose ratio is told for the best rounds
and as the median over rounds; and the processor time of all services for a request, which holds on a busy
machine too.

    python benchmarks/tracing_cost.py [--ratios 0.1,1] [--rounds 8] [--streams 8] [--requests 96]
"""

from __future__ import annotations

import argparse
import http.server
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rhizome_testing.cpu_clock import cpu_seconds
from rhizome_testing.ports import free_port
from rhizome_testing.running_stack import RunningStack, demo_stack_settings, running_stack

LENGTHS = ("--input-tokens", "64", "--output-tokens", "32")
OFF = "off"


class _Drain(http.server.BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    protocol_version = "HTTP/1.1"
    received = 0

    def do_POST(self) -> None:
        _Drain.received += len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@contextmanager
def sink() -> Iterator[str]:
    """The address of a collector without a memory."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Drain)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Figures:
    """Of one way of tracing, by round.

    Attributes:
        tokens_per_s: output tokens.
        cpu_ms: processor time of all services for a request.
    """

    tokens_per_s: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def cpu_s(stack: RunningStack) -> float:
    """Processor time that a stack's processes have used."""
    used = 0.0
    for service in stack.stack.services:
        process = psutil.Process(service.pid)
        for one in (process, *process.children(recursive=True)):
            used += cpu_seconds(one.pid)
    return used


def load(stack: RunningStack, streams: int, requests: int, figures: Figures | None) -> None:
    """Put the load on a stack; the figures of a first time count for nothing."""
    before = cpu_s(stack)
    words = ["bench", "serve", "--base-url", stack.url, "--concurrency", str(streams), "--ignore-eos"]
    words += ["--num-prompts", str(requests), "--warmup", "0", *LENGTHS, "--json", "-"]
    command = [sys.executable, "-m", "rhizome_launcher", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    (level,) = json.loads(done.stdout.strip().splitlines()[-1])["levels"]
    if level["failed"]:
        raise SystemExit(f"{level['failed']} requests failed")
    if figures is not None:
        figures.tokens_per_s.append(level["output_tokens"] / level["duration_s"])
        figures.cpu_ms.append((cpu_s(stack) - before) / requests * 1e3)


def ways_of_tracing(ratios: Sequence[str], endpoint: str) -> dict[str, dict[str, str]]:
    """Environment of each stack, by the share of requests that it samples."""
    ways: dict[str, dict[str, str]] = {OFF: {"OTEL_SDK_DISABLED": "true"}}
    for ratio in ratios:
        ways[ratio] = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": ratio,
        }
    return ways


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratios", default="0.1", help="shares of requests that are sampled")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--requests", type=int, default=96, help="of each stack in a round")
    options = parser.parse_args()
    with ExitStack() as leaving:
        folder = Path(leaving.enter_context(tempfile.TemporaryDirectory()))
        ways = ways_of_tracing(options.ratios.split(","), leaving.enter_context(sink()))
        stacks: dict[str, RunningStack] = {}
        for name, environment in ways.items():
            settings = demo_stack_settings(
                folder / name, engines=1, proxy=True, port=free_port(), environment=environment
            )
            stacks[name] = leaving.enter_context(running_stack(settings))
        figures = {name: Figures() for name in ways}
        for stack in stacks.values():
            load(stack, options.streams, options.requests, None)
        for number in range(options.rounds):
            order = list(stacks) if number % 2 == 0 else list(reversed(stacks))
            for name in order:
                load(stacks[name], options.streams, options.requests, figures[name])
    report(figures)


def report(figures: dict[str, Figures]) -> None:
    """Print a table, and the figures as one JSON object."""
    off, found = figures[OFF], {}
    print(f"{'sampled':>8}{'tok/s best':>12}{'tok/s median':>14}{'cpu ms/request':>16}")
    for name, one in figures.items():
        best, median, cpu = max(one.tokens_per_s), statistics.median(one.tokens_per_s), min(one.cpu_ms)
        print(f"{name:>8}{best:12,.0f}{median:14,.0f}{cpu:16.2f}")
        if name == OFF:
            continue
        by_round = [traced / bare for traced, bare in zip(one.tokens_per_s, off.tokens_per_s, strict=True)]
        found[f"throughput_cost_percent_best_{name}"] = 100 * (1 - best / max(off.tokens_per_s))
        found[f"throughput_cost_percent_median_{name}"] = 100 * (1 - statistics.median(by_round))
        found[f"cpu_cost_percent_least_{name}"] = 100 * (cpu / min(off.cpu_ms) - 1)
        cpu_median = statistics.median(one.cpu_ms) / statistics.median(off.cpu_ms)
        found[f"cpu_cost_percent_median_{name}"] = 100 * (cpu_median - 1)
    print(f"{_Drain.received / 1e3:,.0f} kB of spans")
    print(json.dumps({name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
