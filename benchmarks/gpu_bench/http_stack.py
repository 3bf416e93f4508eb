"""One stream through the whole stack, and the time from its start to ready."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

from gpu_bench.bench import Bench, SkipSection
from gpu_bench.plain_checkout import OF_THE_GATEWAY, missing

READY_S = 90.0


def run(bench: Bench) -> None:
    """Measure both ways of the gateway to the engine."""
    absent = missing(OF_THE_GATEWAY)
    if absent:
        raise SkipSection(f"the services need {', '.join(absent)}, which are not installed here")
    bench.drop_engine()
    checkpoint = bench.checkpoint()
    for name, flags in (("zmq", []), ("grpc", ["--grpc"])):
        if name == "grpc" and bench.smoke:
            continue
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "rhizome_launcher", "serve", "--model", str(checkpoint), *flags]
        command += ["--port", str(port), "--", "--max-cache-tokens", "4096" if bench.smoke else "200000"]
        began = time.perf_counter()
        log = (bench.folder / f"serve-{name}.log").open("w")
        service = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait_ready(port, service, bench, name)
            bench.put(f"serve_{name}_start_to_ready_s", time.perf_counter() - began)
            output = 6 if bench.smoke else 256
            _ask(port, 8)
            _ask(port, output)
            runs = [_ask(port, output) for _ in range(1 if bench.smoke else 3)]
            speeds = [(len(times) - 1) / (times[-1] - times[0]) for times in runs]
            bench.put(f"http_{name}_1_stream_tok_s", statistics.median(speeds))
            firsts = [_ask(port, 1)[0] for _ in range(1 if bench.smoke else 10)]
            bench.put(f"http_{name}_first_token_ms", 1e3 * statistics.median(firsts))
        finally:
            service.send_signal(signal.SIGINT)
            try:
                service.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(service.pid, signal.SIGKILL)
                service.wait()
            log.close()


def _wait_ready(port: int, service: subprocess.Popen[bytes], bench: Bench, name: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if service.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    text = (bench.folder / f"serve-{name}.log").read_text(encoding="utf-8", errors="replace")
    raise RuntimeError(f"the stack was not ready within {READY_S:.0f} s: {text[-2000:]}")


def _ask(port: int, output_tokens: int) -> list[float]:
    """Stream one answer; when each token came, in seconds from the request."""
    body: dict[str, Any] = {
        "model": "",
        "prompt": f"{time.perf_counter()} " * 4,
        "max_tokens": output_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "min_tokens": output_tokens,
    }
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as answer:
        body["model"] = json.load(answer)["data"][0]["id"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    times: list[float] = []
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        times += (
            time.perf_counter() - began
            for line in answer
            if line.startswith(b"data: {") and b'"choices"' in line
        )
    return times
