"""What the HTTP face of the proxy costs, beside nginx in the same minutes.

The proxy is one process on one processor; a backend that answers at once and the client are on another. What
counts is processor time of the proxy, which suffers less than wall time from whatever else the machine does.

    request   2 KB chat requests over 16 kept connections, whole answers of 600 bytes
    stream    64 streams of 50 events/s, 200 bytes each
    idle      open streams that say nothing: memory
    added     one request after another, through the proxy and without it: milliseconds at the median

    python benchmarks/proxy_http.py [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import psutil
import uvloop

ROOT = Path(__file__).parents[1]
PROXY = ROOT / "tests/relay/static_proxy.py"
EVENT = (
    b"data: "
    + b'{"object":"chat.completion.chunk","choices":[{"delta":{"content":" x"}}]}'.ljust(192)
    + b"\n\n"
)
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 20:00:00 GMT\r\nServer: uvicorn\r\n"
    b"Content-Type: application/json\r\nContent-Length: 600\r\n\r\n" + b"x" * 600
)
RATE = 50


class _Backend(asyncio.Protocol):
    """Answers each request with one write; ticks for those that asked for a stream."""

    streams: ClassVar[set[asyncio.Transport]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        if not self.data.endswith(b"}"):
            return
        if b'"stream"' in self.data:
            self.transport.write(SSE_HEAD + b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
            if b'"idle"' not in self.data:
                self.streams.add(self.transport)
        else:
            self.transport.write(ANSWER)
        self.data = b""

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.discard(self.transport)


async def _serve_backend() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Backend, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        await asyncio.sleep(1 / RATE)
        for transport in list(_Backend.streams):
            transport.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))


def _request(kind: str = "") -> bytes:
    body = b'{"model": "m", %b"messages": "%b"}' % (kind.encode(), b"x" * 2000)
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: OpenAI/Python 1.109.1\r\n"
        b"Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
        b"Content-Type: application/json\r\nAuthorization: Bearer sk-12345678\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )


class _Client(asyncio.Protocol):
    """Sends the next request when an answer is complete, or counts events."""

    def __init__(self, load: bytes, again: bool) -> None:
        self.load, self.again, self.count, self.rest = load, again, 0, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.write(self.load)

    def data_received(self, data: bytes) -> None:
        if not self.again:
            self.count += data.count(b"data: ")
            return
        self.rest += data
        if self.rest.endswith(b"x" * 600):
            self.rest = b""
            self.count += 1
            self.transport.write(self.load)


async def _clients(port: int, count: int, load: bytes, *, again: bool) -> list[_Client]:
    loop = asyncio.get_running_loop()
    made = []
    for _ in range(count):
        made.append((await loop.create_connection(lambda: _Client(load, again), "127.0.0.1", port))[1])
        if len(made) % 100 == 0:
            await asyncio.sleep(0.05)
    return made


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


async def _load(
    port: int, process: psutil.Process, count: int, data: bytes, *, again: bool, seconds: float
) -> float:
    """Processor time per answer or event, in µs."""
    made = await _clients(port, count, data, again=again)
    await asyncio.sleep(0.5)
    before, spent = sum(client.count for client in made), _cpu_s(process)
    await asyncio.sleep(seconds)
    spent, done = _cpu_s(process) - spent, sum(client.count for client in made) - before
    for client in made:
        client.transport.abort()
    await asyncio.sleep(0.1)
    return spent / done * 1e6


async def _idle(port: int, process: psutil.Process) -> float:
    first = await _clients(port, 100, _request('"stream": true, "idle": 1, '), again=False)
    before = process.memory_info().rss
    made = await _clients(port, 2000, _request('"stream": true, "idle": 1, '), again=False)
    while not all(client.count for client in made):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    used = process.memory_info().rss - before
    for client in first + made:
        client.transport.abort()
    await asyncio.sleep(0.2)
    return used / len(made) / 1024


async def _latency(port: int) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(400):
        began = time.perf_counter()
        writer.write(_request())
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(600)
        times.append(time.perf_counter() - began)
        await asyncio.sleep(0.002)
    writer.close()
    return statistics.median(times) * 1e3


@contextlib.contextmanager
def _started(command: list[str], cpu: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {cpu})
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _proxy(name: str, backend: int, cpu: int) -> Iterator[tuple[psutil.Process, int]]:
    if name == "rhizome":
        with _started([sys.executable, str(PROXY), str(backend)], cpu) as (process, port):
            yield psutil.Process(process.pid), port
        return
    with tempfile.TemporaryDirectory() as folder:
        port = 18000 + os.getpid() % 1000
        Path(folder, "nginx.conf").write_text(
            f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log crit;
            events {{ worker_connections 8192; }}
            http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
              fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
              keepalive_requests 1000000000; client_body_buffer_size 64k;
              upstream u {{ server 127.0.0.1:{backend}; keepalive 512; keepalive_requests 1000000000; }}
              server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://u; proxy_http_version 1.1;
                proxy_buffering off; proxy_set_header Connection ""; proxy_read_timeout 300;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}"""
        )
        process = subprocess.Popen(["nginx", "-c", f"{folder}/nginx.conf", "-p", folder])
        try:
            while not (workers := psutil.Process(process.pid).children()):
                time.sleep(0.02)
            time.sleep(0.2)
            os.sched_setaffinity(workers[0].pid, {cpu})
            yield workers[0], port
        finally:
            process.terminate()
            process.wait()


async def _measure(names: list[str], rounds: int, backend: int, cpu: int) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {name: {} for name in names}
    for _ in range(rounds):
        for name in names:
            with _proxy(name, backend, cpu) as (process, port):
                await asyncio.sleep(0.3)
                direct = await _latency(backend)
                figures = {
                    "cpu_us_per_request": await _load(port, process, 16, _request(), again=True, seconds=2.0),
                    "cpu_us_per_event": await _load(
                        port, process, 64, _request('"stream": true, '), again=False, seconds=3.0
                    ),
                    "added_p50_ms": await _latency(port) - direct,
                    "kib_per_idle_stream": await _idle(port, process),
                }
            print(name, {key: round(value, 2) for key, value in figures.items()}, flush=True)
            for key, value in figures.items():
                best[name][key] = min(value, best[name].get(key, value))
    return best


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="rhizome,nginx")
    parser.add_argument("--backend", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.backend:
        uvloop.run(_serve_backend())
        return
    names = [name for name in options.only.split(",") if name == "rhizome" or shutil.which(name)]
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[-1]})
    with _started([sys.executable, __file__, "--backend"], cpus[-1]) as (_, port):
        best = uvloop.run(_measure(names, options.rounds, port, cpus[0]))
    print(
        json.dumps({name: {key: round(value, 2) for key, value in row.items()} for name, row in best.items()})
    )


if __name__ == "__main__":
    _main()
