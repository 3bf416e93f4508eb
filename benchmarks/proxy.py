"""What the proxy is worth: failures that nobody notices, work that is not done twice, and what it costs.

    python benchmarks/proxy.py [SECTION...] [--rounds 3] [--trace FILE] [--json FILE] [--quick]
                               [--interpreted]

    failover   kill -9 of one of four engines under streams, over both faces, beside other proxies
    rolling    restart of every engine, and of the proxy itself behind nginx
    routing    prefix hits on a trace, time per decision, memory (benchmarks/routing.py)
    overload   twice the load that fits: goodput, a light tenant beside a heavy one, work for nobody
    http       the HTTP face: processor time, added latency, memory, beside other proxies
    grpc       the gRPC face: added latency, tokens per second

The proxy runs compiled, as in its image (`make native`; `--interpreted` and `--quick`: not), and has a
processor of its own where there are two. Noisy figures are measured in rounds, in turn with
what they are compared with. `docs/benchmarking.md` says how to get figures that hold; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from proxy_bench.bench import Bench, stay_aside
from proxy_bench.figures import table
from proxy_bench.native import add_argument, start_compiled

SECTIONS = {
    "failover": "failover",
    "rolling": "rolling",
    "routing": "routing_figures",
    "overload": "overload",
    "http": "http_cost",
    "grpc": "grpc_cost",
}
TRACE = Path(__file__).parents[1] / "data" / "mooncake_conversation_trace.jsonl"


def main() -> None:
    """Print tables, then one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--rounds", type=int, default=3, help="how often noisy figures are measured")
    parser.add_argument(
        "--trace",
        type=Path,
        default=Path(os.environ.get("RHIZOME_TRACE", TRACE)),
        help="JSON lines with timestamp, hash_ids, output_length; default: $RHIZOME_TRACE, or data/",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--quick", action="store_true", help="short, to try the program; figures mean little")
    add_argument(parser)
    arguments = parser.parse_args()
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"{', '.join(sorted(unknown))} is unknown; there are {', '.join(SECTIONS)}")
    start_compiled(interpreted=arguments.interpreted or arguments.quick)
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # the processes inherit it
    stay_aside()
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="rhizome-") as folder:
        for name in arguments.sections:
            home = Path(folder, name)
            home.mkdir()
            bench = Bench(home, arguments.rounds, arguments.trace, arguments.quick)
            began = time.monotonic()
            section = importlib.import_module(f"proxy_bench.{SECTIONS[name]}")
            figures = asyncio.run(section.measure(bench))
            print(table(name, figures), flush=True)
            print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            result[name] = {figure.name: figure.as_json() for figure in figures}
    text = json.dumps(result)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
