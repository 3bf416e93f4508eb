"""Whatever bytes come in at any listener: the same processes, bounded memory, and others are served.

RHIZOME_FUZZ_SECONDS=600 pytest -s tests/fuzz/frames    # `make fuzz-frames`, all listeners together
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.fuzz.frames.gates import PROXY_METHODS, CoreGate, Gate, GrpcGate, HttpGate

from rhizome.engine.v1.engine_service_pb2 import GetLoadRequest
from rhizome.engine.v1.engine_service_pb2_grpc import EngineServiceStub
from rhizome.engine.v1.generate_pb2 import GenerateRequest
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_testing.running_stack import DEMO_MODEL
from rhizome_testing.simulated_server import SimulatedServer
from rhizome_transport.channel import ENGINE_SERVICE

SECONDS = float(os.environ.get("RHIZOME_FUZZ_SECONDS", "0"))
"""0 throws the same few at each listener; otherwise new ones for so long, a quarter at each."""
GATES = ("core", "front", "proxy", "relay")
FEW = 25
ROUND = 200
SEED = 20_26
MOST_GROWTH = 96 << 20
"""Of any process: caches and pools fill up once; a leak of 1 KiB an execution would show."""


class Target:
    """An engine, a proxy in front of it and of a server that speaks HTTP, and a good client.

    Args:
        folder: for logs and the socket.
    """

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        with ExitStack() as starting:
            endpoint = f"ipc://{folder}/core.ipc"
            self.engine = starting.enter_context(
                EngineProcess(DEMO_MODEL, folder, "--core-endpoint", endpoint)
            )
            self.server = starting.enter_context(SimulatedServer("vllm", folder))
            backends = [self.engine.target, self.server.address]
            self.proxy = starting.enter_context(ProxyProcess(backends, folder, http=True))
            self.engine.wait_serving()
            self.proxy.wait_ready(2)
            self.gates: dict[str, Gate] = {
                "core": CoreGate(endpoint),
                "front": GrpcGate(self.engine.target),
                "proxy": GrpcGate(f"127.0.0.1:{self.proxy.port}", PROXY_METHODS),
                "relay": HttpGate(self.proxy.http_port),
            }
            self._channel = starting.enter_context(grpc.insecure_channel(f"127.0.0.1:{self.proxy.port}"))
            self._direct = starting.enter_context(grpc.insecure_channel(self.engine.target))
            self.expected = self.ask()
            self._stack = starting.pop_all()

    def ask(self) -> list[int]:
        """A usual request by way of the proxy."""
        request = GenerateRequest(model=DEMO_MODEL.name)
        request.token_ids.ids.extend(range(100, 120))
        request.sampling.temperature = 0
        request.stop.max_tokens = 8
        request.stop.ignore_eos = True
        answer = EngineServiceStub(self._channel).Generate(request, timeout=30)
        return [token for event in answer for token in event.delta.token_ids]

    def processes(self) -> dict[str, psutil.Process]:
        """All of them but the server, which is not ours."""
        front, proxy = psutil.Process(self.engine.pid), psutil.Process(self.proxy.pid)
        return {"core": self.engine.core(), "front": front, "proxy": proxy}

    def assert_at_rest(self) -> None:
        """Nothing of it all is left: no request, no page."""
        deadline = time.monotonic() + 30
        while True:
            load = EngineServiceStub(self._direct).GetLoad(GetLoadRequest(), timeout=10).load
            if not (load.running_requests or load.waiting_requests or load.kv_pages_in_use):
                return
            assert time.monotonic() < deadline, load
            time.sleep(0.05)

    def close(self) -> None:
        """End everything."""
        self._stack.close()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    one = Target(tmp_path_factory.mktemp("frames"))
    yield one
    one.close()


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("gate", GATES)
def test_no_bytes_hurt_anybody(target: Target, gate: str, capsys: pytest.CaptureFixture[str]) -> None:
    attacked = target.gates[gate]
    before = target.processes()
    weights = {name: process.memory_info().rss for name, process in before.items()}
    executions, began_s = 0, time.monotonic()
    for number in range(1_000_000):
        executions += _round(attacked, SEED + number, ROUND if SECONDS else FEW)
        assert target.ask() == target.expected, "a good client got something else"
        if time.monotonic() - began_s >= SECONDS / len(GATES):
            break
    target.assert_at_rest()
    now = target.processes()
    assert {name: one.pid for name, one in now.items()} == {name: one.pid for name, one in before.items()}
    grown = {name: (one.memory_info().rss - weights[name]) >> 10 for name, one in now.items()}
    if SECONDS:
        with capsys.disabled():
            seconds = time.monotonic() - began_s
            print(f"\n  {gate}: {executions} executions in {seconds:.0f} s; KiB grown {grown}")
            print(f"      {dict(attacked.counts)}")
    assert not attacked.wrong, f"{len(attacked.wrong)} answers: " + "\n".join(
        sorted(set(attacked.wrong))[:10]
    )
    assert max(grown.values()) < MOST_GROWTH >> 10, grown
    for process in (target.engine, target.proxy):
        assert "Traceback" not in process.output, process.output[-4000:]


@pytest.mark.parametrize("method", ["Abort", "GetModelInfo", "Generate", "Tokenize"])
def test_a_request_that_is_no_message_is_refused_without_a_traceback(target: Target, method: str) -> None:
    proxy = f"127.0.0.1:{target.proxy.port}"
    for process, address in ((target.engine, target.engine.target), (target.proxy, proxy)):
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_stream(f"/{ENGINE_SERVICE}/{method}")(b"\x0a\xff\xff", timeout=10)
            with pytest.raises(grpc.RpcError) as raised:
                list(call)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT, raised.value
        assert "Traceback" not in process.output


def _round(gate: Gate, number: int, examples: int) -> int:
    """Some executions that this number determines; how many."""
    done = 0

    @seed(number)
    @settings(
        max_examples=examples, database=None, deadline=None, phases=[Phase.generate], derandomize=False,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def throw(data: st.DataObject) -> None:
        nonlocal done
        done += 1
        gate.attack(data)

    throw()
    return done
