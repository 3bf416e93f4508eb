"""A gateway without a proxy and without gRPC: one engine core over ipc, one over TCP with keys."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zmq
from openai import OpenAI

from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.ports import free_ports
from rhizome_transport.curve import new_key

MODEL = Path(__file__).resolve().parents[2] / "models" / "demo"
QUESTION = "What is the capital of France?"


@dataclass
class Cores:
    """Two engines and the gateway in front of their cores."""

    ipc: str
    near: EngineProcess
    far: EngineProcess
    gateway: GatewayProcess
    metrics_port: int


@pytest.fixture(scope="module")
def cores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cores]:
    logs, keys = tmp_path_factory.mktemp("logs"), tmp_path_factory.mktemp("keys")
    for name in ("core", "gateway"):
        new_key(keys, name)
    with ExitStack() as stack:
        run = Path(stack.enter_context(TemporaryDirectory(prefix="rz-"))) / "run"
        ipc = f"ipc://{run}/near.ipc"
        tcp_port, metrics_port = free_ports(2)
        tcp = f"tcp://127.0.0.1:{tcp_port}"
        listen = ("--core-endpoint", tcp, "--core-curve-key", str(keys / "core.secret"))
        near = EngineProcess(
            MODEL, logs, "--core-endpoint", ipc, "--metrics-port", str(metrics_port), "--overlap", "off"
        )
        stack.callback(near.terminate)
        far = EngineProcess(MODEL, logs, *listen, "--core-curve-clients", str(keys / "gateway.public"))
        stack.callback(far.terminate)
        believed = ("--engine-curve-key", str(keys / "gateway.secret"))
        gateway = GatewayProcess(
            f"{ipc},{tcp}", logs, *believed, "--engine-curve-server", str(keys / "core.public")
        )
        stack.callback(gateway.terminate)
        gateway.wait_ready(90)
        near.wait_serving()
        far.wait_serving()
        yield Cores(ipc, near, far, gateway, metrics_port)


def stream(url: str) -> str:
    with OpenAI(base_url=f"{url}/v1", api_key="not-needed", max_retries=0, timeout=60) as client:
        chunks = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_both_cores_answer_alike_and_one_of_them_is_enough(cores: Cores) -> None:
    answers = {stream(cores.gateway.url) for _ in range(4)}
    assert len(answers) == 1
    assert "Paris" in answers.pop()
    cores.far.core().kill()
    assert "Paris" in stream(cores.gateway.url)


def test_what_the_socket_drops_is_counted_where_operators_look(cores: Cores) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 2_000
    socket.connect(cores.ipc)
    for payload in (b"\xff\xff\xff", b"", b"\x0a\x00"):
        socket.send(payload)
    socket.close()
    context.term()
    pattern = r'rhizome_engine_frames_dropped_total\{.*reason="undecodable"\} (\S+)'

    def counted() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{cores.metrics_port}/metrics", timeout=10) as answer:
            found = re.search(pattern, answer.read().decode())
        return found is not None and float(found[1]) >= 1

    cores.near.wait_until(counted, "it has counted what it dropped")
