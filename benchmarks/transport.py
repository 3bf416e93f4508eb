"""What carries frames from an engine to a front end: gRPC over TCP or a Unix socket, or ZeroMQ over ipc.

One server process (`rhizome_testing.metronome_engine`: real frames, no model) and one client process, which
has the very client that a gateway uses; in `grpc.aio`, the reference, its frames go over gRPC's own asyncio
client. Each has a processor of its own where there are two.

    rtt       one request of one token after another: microseconds from submitting it to its end
    saturate  64 streams, a frame for every credit: tokens per second of the client's processor. What it reads
              late comes merged, as the contract allows
    steady    64 streams of 50 tokens per second: the client's processor time per 100,000 tokens
    codecs    a step frame in protobuf and in MessagePack (with msgspec and msgpack, where installed)

All transports run in turn, several rounds, and each figure's best round counts: disturbance only ever slows.
Ratios are to gRPC's own client in the same minutes.

    python benchmarks/transport.py [--rounds 3] [--only rtt,codecs] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gateway_bench.servers import on_cpus
from transport_bench.codecs import compare

from rhizome_testing.metronome_engine import set_pace
from rhizome_testing.processes import ProcessFixture

HERE = Path(__file__).parent / "transport_bench"
REFERENCE = "grpc.aio"
TRANSPORTS = (REFERENCE, "grpc-tcp", "grpc-uds", "zeromq-ipc")
STREAMS = "64"
LIMIT_S = 120.0

Figures = dict[str, float]

# scenario: the engine's pace, and what client.py does.
SCENARIOS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "rtt": ("instant", "rtt", ("3000",)),
    "saturate": ("saturate", "stream", (STREAMS, "4")),
    "steady": ("rate 50", "stream", (STREAMS, "4")),
}
BEST: Mapping[str, Callable[..., float]] = {
    "rtt_p50_us": min,
    "rtt_p99_us": min,
    "tokens_per_s": max,
    "tokens_per_cpu_s": max,
    "cpu_s_per_100k_tokens": min,
}
SHOWN: Mapping[str, tuple[str, ...]] = {
    "rtt": ("rtt_p50_us", "rtt_p99_us"),
    "saturate": ("tokens_per_s", "tokens_per_cpu_s", "cpu_s_per_100k_tokens"),
    "steady": ("cpu_s_per_100k_tokens",),
}
GOALS = (
    ("ZeroMQ round trip, p50 in µs", "rtt", "rtt_p50_us", "<=", 250.0),
    ("ZeroMQ tokens/s on one processor, 64 streams", "saturate", "tokens_per_s", ">=", 250_000.0),
)


@contextmanager
def served(transport: str, cpus: frozenset[int]) -> Iterator[tuple[str, str]]:
    """An engine; where its pace is set, and where it is reached."""
    with tempfile.TemporaryDirectory(prefix="rz-") as folder, on_cpus(cpus):
        private = Path(folder) / "run"
        private.mkdir(mode=0o700)
        server = ProcessFixture(
            [sys.executable, str(HERE / "server.py"), transport, str(private)],
            log=Path(folder) / "server.log",
            name=transport,
        )
        try:
            found = server.wait_for_line(r"^serving (\S+) (\S+)$")
            yield found[1], found[2]
        finally:
            server.terminate()


def ask(kind: str, transport: str, target: str, numbers: tuple[str, ...], cpus: frozenset[int]) -> Figures:
    """Run the client process."""
    with on_cpus(cpus):
        done = subprocess.run(
            [sys.executable, "-m", "transport_bench.client", kind, transport, target, *numbers],
            cwd=HERE.parent,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"the client failed:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def better(old: Figures | None, new: Figures) -> Figures:
    """The best of two rounds, figure by figure."""
    if old is None:
        return new
    return {name: BEST.get(name, lambda a, b: b)(old[name], new[name]) for name in new}


def measure(names: list[str], rounds: int, *, pin: bool) -> dict[str, dict[str, Figures]]:
    """Figures by scenario and transport."""
    cpus = sorted(os.sched_getaffinity(0))
    servers, client = (
        (frozenset(cpus[:1]), frozenset(cpus[1:2])) if pin and len(cpus) > 1 else (frozenset(),) * 2
    )
    found: dict[str, dict[str, Figures]] = {name: {} for name in names}
    for number in range(rounds):
        for transport in TRANSPORTS:
            with served(transport, servers) as (control, target):
                for name in names:
                    pace, kind, numbers = SCENARIOS[name]
                    set_pace(control, pace)
                    figures = ask(kind, transport, target, numbers, client)
                    found[name][transport] = better(found[name].get(transport), figures)
            print(f"round {number + 1} of {rounds}: {transport}", file=sys.stderr, flush=True)
    return found


def show(found: Mapping[str, Mapping[str, Figures]]) -> None:
    """The tables: figures, and in brackets their ratios to gRPC's own client."""
    for name, by_transport in found.items():
        print(f"\n{name:24}" + "".join(f"{one:>24}" for one in by_transport))
        for figure in SHOWN[name]:
            base = by_transport[REFERENCE][figure]
            cells = (
                f"{figures[figure]:>15,.{2 if figures[figure] < 100 else 0}f} ({figures[figure] / base:5.2f})"
                for figures in by_transport.values()
            )
            print(f"{figure:24}" + "".join(f"{cell:>24}" for cell in cells))


def show_codecs(found: Mapping[str, Mapping[str, Figures]]) -> None:
    """The table of codecs."""
    for events, by_codec in found.items():
        print(f"\nframe of {events} events{'':6}" + "".join(f"{one:>14}" for one in by_codec))
        for figure in next(iter(by_codec.values())):
            print(f"{figure:24}" + "".join(f"{figures[figure]:>14,.2f}" for figures in by_codec.values()))


def show_goals(found: Mapping[str, Mapping[str, Figures]]) -> None:
    """Which goals are met."""
    print()
    for text, scenario, figure, how, limit in GOALS:
        if scenario in found:
            value = found[scenario]["zeromq-ipc"][figure]
            met = value <= limit if how == "<=" else value >= limit
            print(f"{text}: {value:,.0f} {how} {limit:,.0f}: {'met' if met else 'missed'}")
    for scenario in ("saturate", "steady"):
        if scenario in found:
            by_transport, figure = found[scenario], "cpu_s_per_100k_tokens"
            share = by_transport["zeromq-ipc"][figure] / by_transport[REFERENCE][figure]
            met = "met" if share <= 0.6 else "missed"
            print(f"ZeroMQ's processor time beside gRPC's own client, {scenario}: {share:.0%} <= 60%: {met}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--only", default="", help=f"some of {', '.join((*SCENARIOS, 'codecs'))}")
    parser.add_argument("--no-pin", action="store_true", help="let the processes share all processors")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [*SCENARIOS, "codecs"]
    unknown = set(wanted) - {*SCENARIOS, "codecs"}
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")
    names = [name for name in SCENARIOS if name in wanted]
    load = os.getloadavg()[0]
    print(f"load average at the start: {load:.2f} on {os.cpu_count()} processors")
    found = measure(names, options.rounds, pin=not options.no_pin) if names else {}
    codecs = {str(events): compare(events) for events in (1, 64)} if "codecs" in wanted else {}
    show(found)
    show_codecs(codecs)
    show_goals(found)
    whole = json.dumps({"load_average": load, "transports": found, "codecs": codecs})
    if options.json is not None:
        options.json.write_text(whole)
    print(whole)


if __name__ == "__main__":
    main()
