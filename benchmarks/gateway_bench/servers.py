"""The processes of a measurement: the engine, and what is in front of it."""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rhizome_testing.ports import free_port
from rhizome_testing.processes import ProcessFixture

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "models" / "demo"
GATEWAYS = ("grpc", "zmq")
TARGETS = (*GATEWAYS, "probe-grpc", "probe-zmq", "baseline")


@contextmanager
def on_cpus(cpus: frozenset[int]) -> Iterator[None]:
    """Processes that are started in this block run on these processors only; on any when there are none."""
    if not cpus:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class MetronomeProcess(ProcessFixture):
    """The engine.

    Args:
        folder: private; for its socket and its log.

    Attributes:
        endpoint: for ZeroMQ.
        target: for gRPC.
    """

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"ipc://{folder}/metronome.ipc"
        super().__init__(
            [
                *(sys.executable, "-m", "rhizome_testing.metronome_engine"),
                *("--model", str(MODEL), "--endpoint", self.endpoint),
            ],
            log=folder / "metronome.log",
            name="metronome",
        )
        self.target = ""

    def wait_serving(self) -> None:
        """Wait for the address."""
        self.target = self.wait_for_line(r"^serving on (\S+)$")[1]

    def address(self, kind: str) -> str:
        """Where a front of this kind finds it."""
        return self.endpoint if kind.endswith("zmq") else self.target


def start_front(kind: str, engine: MetronomeProcess, folder: Path) -> tuple[ProcessFixture, int]:
    """Start a gateway (over `grpc` or `zmq`), a probe or the `baseline`, and wait until it serves.

    Returns:
        The process and its port.
    """
    port = free_port()
    words = {
        "grpc": ["-m", "rhizome_gateway", "--log-level", "WARNING"],
        "zmq": ["-m", "rhizome_gateway", "--log-level", "WARNING"],
        "probe-grpc": [str(HERE / "probe.py")],
        "probe-zmq": [str(HERE / "probe.py")],
        "baseline": [str(HERE / "relay.py")],
    }[kind]
    target = engine.address(kind)
    front = ProcessFixture(
        [sys.executable, *words, "--engine", target, "--port", str(port)],
        log=folder / f"{kind}-{port}.log",
        name=kind,
    )
    try:
        path = "/ready" if kind in GATEWAYS else "/health"
        front.wait_until(lambda: _answers(port, path), f"{path} answers 200")
    except BaseException:
        front.terminate()
        raise
    return front, port


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
