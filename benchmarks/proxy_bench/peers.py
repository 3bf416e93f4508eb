"""Other proxies, where they are installed: found on PATH, or in the folder that `RHIZOME_BENCH_PEERS` names.

`python -m venv peers && peers/bin/pip install vllm-router sglang-router smg` makes one; then
`RHIZOME_BENCH_PEERS=peers/bin python benchmarks/proxy.py http`.
"""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from proxy_bench.bench import measured

from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture

PEERS: Final = ("nginx", "vllm-router", "sglang-router", "smg")
_START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A proxy that runs.

    Attributes:
        process: the one that relays.
        port: where it listens.
    """

    process: psutil.Process
    port: int


def installed() -> list[str]:
    """Peers that can be started; a line for each that cannot."""
    found = []
    for name in PEERS:
        if program(name):
            found.append(name)
        else:
            print(f"  {name} is not installed, left out")
    return found


@contextmanager
def start_peer(name: str, backends: Sequence[int], folder: Path, label: str) -> Iterator[Peer]:
    """Start one with defaults, as its users would, on the processor of what is measured.

    Raises:
        ProcessFailedError: it does not serve.
    """
    path = program(name)
    assert path is not None
    port, metrics_port = free_ports(2)
    if name == "nginx":
        home = folder / label
        home.mkdir()
        (home / "nginx.conf").write_text(_nginx(home, port, backends))
        command = [path, "-c", str(home / "nginx.conf"), "-p", str(home), "-e", str(home / "early.log")]
    else:
        launch = [] if name == "vllm-router" else ["launch"]
        command = [
            *(path, *launch, "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", *(f"http://127.0.0.1:{backend}" for backend in backends)),
            *("--prometheus-port", str(metrics_port), "--policy", "round_robin", "--log-level", "error"),
        ]
    with measured():
        process = ProcessFixture(command, log=folder / f"{label}.log", name=name)
    with process:
        process.wait_until(lambda: _serves(port), f"{name} serves", _START_S)
        yield Peer(_relaying(process), port)


def program(name: str) -> str | None:
    """Where a peer is installed; `None` where it is not."""
    folder = os.environ.get("RHIZOME_BENCH_PEERS", "")
    path = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin"
    return shutil.which(name, path=path)


def _relaying(process: ProcessFixture) -> psutil.Process:
    """The worker where there is one, as nginx has it."""
    children = process.children()
    return children[0] if children else psutil.Process(process.pid)


def _serves(port: int) -> bool:
    """Whether a completion comes back; routers answer health before they know a model."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        body = '{"model": "simulated", "prompt": "x", "max_tokens": 1}'
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _nginx(home: Path, port: int, backends: Sequence[int]) -> str:
    servers = " ".join(f"server 127.0.0.1:{backend};" for backend in backends)
    return f"""daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log crit;
events {{ worker_connections 8192; }}
http {{ access_log off; client_body_temp_path {home}/b; proxy_temp_path {home}/p;
  fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  keepalive_requests 1000000000; client_body_buffer_size 64k;
  upstream u {{ {servers} keepalive 512; keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://u; proxy_http_version 1.1;
    proxy_buffering off; proxy_set_header Connection ""; proxy_read_timeout 300;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}
"""
