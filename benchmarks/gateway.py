"""What the gateway costs, beside a plain FastAPI relay in the same minutes.

The engine is `rhizome_testing.metronome_engine`: no model, tokens at a steady pace, frames as a real engine
sends them. The gateway is one process on one processor, the engine and the client are on another; what counts
is processor time of the gateway, which suffers less than wall time from whatever else the machine does.

    stream    64 streams of 50 tokens/s: processor time per server-sent event
    saturate  64 streams, a frame for every credit: tokens per second of processor time. What a client reads
              late comes merged, so the tokens in an event are told, too.
    chat      whole answers of 32 tokens to prompts of 2 KB: processor time
    ttft      200 short streams per second at random times, from an engine that answers at once: milliseconds
              from the request to the first token. What the gateway adds is that less what a client waits that
              asks the engine itself over gRPC or ZeroMQ, just after (`gateway_bench/direct.py`)
    idle      10,000 streams without tokens: memory, and how long /health takes meanwhile

The baseline (`gateway_bench/relay.py`) has one gRPC stream per request and one message per token. The probes
(`gateway_bench/probe.py`) are the floor: HTTP written by hand around the gateway's own connections to the
engine, without anything that a gateway is for. Goals in microseconds are of another machine, on which the
floor over ZeroMQ was 15 µs per event; the ratio to the probe in the same minutes carries over.

    python benchmarks/gateway.py [--only stream,chat] [--targets grpc,zmq,probe-zmq,baseline] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gateway_bench.servers import TARGETS, MetronomeProcess, on_cpus, start_front

from rhizome_testing.metronome_engine import open_requests, set_pace

LOAD = Path(__file__).parent / "gateway_bench" / "load.py"
ASK_DIRECTLY = LOAD.with_name("direct.py")
LOAD_LIMIT_S = 90.0
RELEASE_LIMIT_S = 10.0
SPARE_FILES = 500

Figures = dict[str, float]

# scenario: the engine's pace, what load.py does.
SCENARIOS: Mapping[str, tuple[str, Sequence[str]]] = {
    "stream": ("rate 50", ("streams", "--count", "64", "--window-s", "5")),
    "saturate": ("saturate", ("streams", "--count", "64", "--window-s", "4")),
    "chat": ("instant", ("chats", "--count", "8", "--window-s", "4")),
    "ttft": ("instant", ("first_tokens", "--rate", "200", "--window-s", "6")),
    "idle": ("idle", ("idle",)),
}

# Of several rounds the one counts in which this is the least, or the most: disturbance only ever slows.
HEADLINES: Mapping[str, tuple[str, Callable[[float, float], float]]] = {
    "stream": ("cpu_us_per_event", min),
    "saturate": ("tokens_per_cpu_s", max),
    "chat": ("cpu_us_per_chat", min),
    "ttft": ("both_p99_ms", min),
    "idle": ("kib_per_stream", min),
}

# scenario, figure of load.py, its name in the output, goals over gRPC and ZeroMQ.
ROWS: Sequence[tuple[str, str, str, str, str]] = (
    ("stream", "cpu_us_per_event", "cpu_us_per_sse_event", "<= 30", "<= 20"),
    ("stream", "events_per_s", "sse_events_per_s", "", ""),
    ("stream", "cpu_share", "cpu_share", "", ""),
    ("saturate", "tokens_per_cpu_s", "saturated_tokens_per_cpu_s", ">= 35000", ">= 150000"),
    ("saturate", "tokens_per_s", "saturated_tokens_per_s", "", ""),
    ("saturate", "tokens_per_event", "saturated_tokens_per_sse_event", "", ""),
    ("saturate", "cpu_us_per_event", "saturated_cpu_us_per_sse_event", "", ""),
    ("saturate", "cpu_share", "saturated_cpu_share", "", ""),
    ("chat", "cpu_us_per_chat", "chat_2kb_cpu_us", "<= 700", "<= 700"),
    ("ttft", "added_p50_ms", "ttft_added_p50_ms", "<= 1.5", "<= 1.5"),
    ("ttft", "added_p99_ms", "ttft_added_p99_ms", "<= 4", "<= 4"),
    ("ttft", "p50_ms", "ttft_p50_ms", "", ""),
    ("ttft", "p99_ms", "ttft_p99_ms", "", ""),
    ("ttft", "direct_p50_ms", "ttft_direct_p50_ms", "", ""),
    ("ttft", "direct_p99_ms", "ttft_direct_p99_ms", "", ""),
    ("ttft", "cpu_us_per_request", "short_stream_cpu_us", "", ""),
    ("idle", "kib_per_stream", "idle_kib_per_stream", "<= 40", "<= 40"),
    ("idle", "health_max_ms", "idle_health_max_ms", "<= 50", "<= 50"),
    ("idle", "opened_per_s", "idle_opened_per_s", "", ""),
    ("idle", "released_s", "idle_released_s", "", ""),
)


class Bench:
    """Runs scenarios against one engine.

    Args:
        folder: private; for sockets and logs.
        pin: whether the gateway gets a processor of its own.
        idle_streams: how many are held in `idle`.
    """

    def __init__(self, folder: Path, *, pin: bool, idle_streams: int) -> None:
        self._folder = folder
        self._idle_streams = idle_streams
        cpus = sorted(os.sched_getaffinity(0))
        pinned = pin and len(cpus) > 1
        self._front_cpus = frozenset(cpus[-1:] if pinned else ())
        self._other_cpus = frozenset(cpus[:-1] if pinned else ())

    def run(
        self, targets: Sequence[str], scenarios: Sequence[str], rounds: int
    ) -> dict[tuple[str, str], Figures]:
        """Measure in turn; figures by target and scenario."""
        with on_cpus(self._other_cpus):
            engine = MetronomeProcess(self._folder)
        with engine:
            engine.wait_serving()
            results: dict[tuple[str, str], Figures] = {}
            for target in [*targets] * rounds:
                # Memory is measured in a process that nothing was measured in before.
                for group in ([name for name in scenarios if name != "idle"], [*{"idle"} & {*scenarios}]):
                    if group:
                        self._measure(target, engine, group, results)
            return results

    def _measure(
        self,
        target: str,
        engine: MetronomeProcess,
        scenarios: Sequence[str],
        results: dict[tuple[str, str], Figures],
    ) -> None:
        with on_cpus(self._front_cpus):
            front, port = start_front(target, engine, self._folder)
        with front:
            for name in scenarios:
                pace, words = SCENARIOS[name]
                set_pace(engine.target, pace)
                if name == "idle":
                    words = (*words, "--count", str(self._idle_streams))
                direct = [*words[1:], "--engine", engine.address(target)]
                began = time.monotonic()
                figures = self._run(LOAD, [*words, "--port", str(port), "--pid", str(front.pid)])
                if name == "ttft":
                    figures |= _added(figures, self._run(ASK_DIRECTLY, direct))
                figures["released_s"] = self._wait_released(engine, name)
                results[target, name] = better(name, results.get((target, name)), figures)
                print(f"  {target} {name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    def _run(self, program: Path, words: Sequence[str]) -> Figures:
        with on_cpus(self._other_cpus):
            done = subprocess.run(
                [sys.executable, str(program), *words],
                capture_output=True,
                text=True,
                check=False,
                timeout=LOAD_LIMIT_S,
            )
        if done.returncode:
            raise SystemExit(f"{program.name} {' '.join(words)} failed:\n{done.stderr[-2000:]}")
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures

    @staticmethod
    def _wait_released(engine: MetronomeProcess, scenario: str) -> float:
        """Seconds until no request is open any more after the client left."""
        began = time.monotonic()
        while left := open_requests(engine.target):
            if time.monotonic() - began > RELEASE_LIMIT_S:
                raise SystemExit(f"{left} requests of {scenario} are still open after their client left")
            time.sleep(0.02)
        return time.monotonic() - began


def _added(through: Figures, direct: Figures) -> Figures:
    """What a front adds to the first token beyond the engine asked directly."""
    added = {f"added_{name}": through[name] - direct[name] for name in ("p50_ms", "p99_ms")}
    told = {f"direct_{name}": direct[name] for name in ("p50_ms", "p99_ms")}
    return {**added, **told, "both_p99_ms": through["p99_ms"] + direct["p99_ms"]}


def better(scenario: str, earlier: Figures | None, later: Figures) -> Figures:
    """The round that was disturbed less."""
    key, choose = HEADLINES[scenario]
    if earlier is not None and choose(earlier[key], later[key]) == earlier[key]:
        return earlier
    return later


def table(results: Mapping[tuple[str, str], Figures], targets: Sequence[str]) -> str:
    """The figures for people."""
    lines = [
        f"{'':<34}" + "".join(f"{target:>12}" for target in targets) + f"{'goal grpc':>12}{'goal zmq':>12}"
    ]
    for scenario, key, name, *goals in ROWS:
        cells = [results.get((target, scenario), {}).get(key) for target in targets]
        if any(cell is not None for cell in cells):
            values = "".join(f"{_digits(cell):>12}" for cell in cells)
            lines.append(f"{name:<34}{values}" + "".join(f"{goal:>12}" for goal in goals))
    return "\n".join(lines)


def flat(results: Mapping[tuple[str, str], Figures], targets: Sequence[str]) -> Figures:
    """The figures as one object.

    With them: how many times better than the baseline the gateway is, and how many times the probe's figure.
    """
    figures: Figures = {}
    for scenario, key, name, *_ in ROWS:
        found = {
            target: results[target, scenario].get(key) for target in targets if (target, scenario) in results
        }
        for target, value in found.items():
            if value is None:
                continue
            kind, _, transport = target.rpartition("-") if target != "baseline" else (target, "", "")
            figures["_".join(filter(None, (kind or "gateway", name, transport)))] = round(value, 4)
            if kind or name not in _RATIOS:
                continue
            more_is_better = name == "saturated_tokens_per_cpu_s"
            if reference := found.get("baseline"):
                ratio = value / reference if more_is_better else reference / value
                figures[f"times_better_{name}_{transport}"] = round(ratio, 2)
            if floor := found.get(f"probe-{transport}"):
                figures[f"of_probe_{name}_{transport}"] = round(value / floor, 2)
    return figures


_RATIOS = frozenset(
    {
        "cpu_us_per_sse_event",
        "saturated_tokens_per_cpu_s",
        "chat_2kb_cpu_us",
        "ttft_p50_ms",
        "ttft_p99_ms",
        "idle_kib_per_stream",
    }
)


def _digits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def main() -> None:
    """Print a table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, separated by commas")
    parser.add_argument(
        "--targets",
        default=",".join(TARGETS),
        help="the gateway over gRPC, over ZeroMQ, what it is compared with",
    )
    parser.add_argument("--no-pin", action="store_true", help="let the system choose processors")
    parser.add_argument("--rounds", type=int, default=1, help="take turns so often; the best round counts")
    parser.add_argument("--idle-streams", type=int, default=10_000)
    arguments = parser.parse_args()
    scenarios = arguments.only.split(",")
    targets = arguments.targets.split(",")
    for given, known in ((scenarios, SCENARIOS), (targets, TARGETS)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))} is unknown; there are {', '.join(known)}")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # the processes inherit it
    if "idle" in scenarios and arguments.idle_streams + SPARE_FILES > most_files:
        parser.error(
            f"{arguments.idle_streams} streams need more open files than `ulimit -Hn` ({most_files})"
        )
    with tempfile.TemporaryDirectory(prefix="rhizome-") as folder:
        bench = Bench(Path(folder), pin=not arguments.no_pin, idle_streams=arguments.idle_streams)
        results = bench.run(targets, [name for name in SCENARIOS if name in scenarios], arguments.rounds)
    print(table(results, targets))
    print(json.dumps(flat(results, targets)))


if __name__ == "__main__":
    main()
