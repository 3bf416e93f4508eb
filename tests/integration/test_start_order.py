"""Gateway, proxy and engine: started in any order, killed, started again, and nothing of them left."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import psutil
import pytest

from rhizome_launcher.service_process import is_alive
from rhizome_testing.checkpoints import write_llama_checkpoint
from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.long_tests import takes_long
from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.proxy_process import ProxyProcess
from rhizome_transport.channel import ENGINE_SERVICE
from rhizome_transport.probe import NOT_SERVING, probe

INSIDE, OUTSIDE = "inside-" + "i" * 32, "outside-" + "o" * 32
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def keep() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def status_of(gateway: GatewayProcess) -> int:
    """What a completion is answered with."""
    body = json.dumps({"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 2, "ignore_eos": True}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{gateway.url}/v1/completions", body, headers)
    try:
        with _DIRECT.open(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def code_of(port: int, token: str, method: str = f"{ENGINE_SERVICE}/GetModelInfo") -> grpc.StatusCode:
    """How a call ends that shows a token, or none."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/{method}")(b"", timeout=30, metadata=metadata)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def kill(process: ProcessFixture) -> None:
    process.signal(signal.SIGKILL)
    process.wait()


def test_who_comes_first_waits_and_who_comes_back_is_found(
    checkpoint: Path, tmp_path: Path, keep: ExitStack
) -> None:
    """Gateway before proxy before engine; then each is killed in turn and comes back at its place.

    Each asks for a token of its own, so all of their ways to each other know it.
    """
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.write_text(f"{INSIDE}\n")
    outside.write_text(f"old-{OUTSIDE}\n{OUTSIDE}\n")
    shown = tmp_path / "shown"
    shown.write_text(f"{OUTSIDE}\n")
    ports = free_ports(4)
    engine_port, proxy_ports = ports[0], ports[1:]
    environment = {"XDG_RUNTIME_DIR": str(tmp_path)}
    fixed = ("--core-endpoint", f"ipc://{tmp_path}/run/core.ipc", "--orphan-grace-s", "60")
    to_proxy = (f"127.0.0.1:{proxy_ports[0]}", tmp_path, "--engine-token-file", str(shown))
    proxy_tokens = ("--token-file", str(outside), "--engine-token-file", str(inside))

    def start_engine() -> EngineProcess:
        return keep.enter_context(
            EngineProcess(
                checkpoint,
                tmp_path,
                *(*fixed, "--token-file", str(inside)),
                port=engine_port,
                environment=environment,
            )
        )

    def start_proxy(name: str) -> ProxyProcess:
        address = f"127.0.0.1:{engine_port}"
        return keep.enter_context(
            ProxyProcess([address], tmp_path, *proxy_tokens, ports=proxy_ports, name=name)
        )

    gateway = keep.enter_context(GatewayProcess(*to_proxy))
    gateway.wait_for_port(gateway.port)
    assert status_of(gateway) == 503
    proxy = start_proxy("proxy")
    proxy.wait_for_port(proxy.port)
    assert probe(f"127.0.0.1:{proxy.port}", ENGINE_SERVICE)[0] == NOT_SERVING
    assert status_of(gateway) == 503
    engine = start_engine()
    gateway.wait_ready(120)
    assert status_of(gateway) == 200
    core = engine.core()
    for port, own in ((engine.port, INSIDE), (proxy.port, OUTSIDE)):
        assert code_of(port, own) is grpc.StatusCode.OK
        for other in ("", OUTSIDE if own == INSIDE else INSIDE):
            assert code_of(port, other) is grpc.StatusCode.UNAUTHENTICATED
    assert code_of(engine.admin_port, "", "rhizome.engine.v1.EngineAdminService/ListPins") is (
        grpc.StatusCode.UNAUTHENTICATED
    )

    kill(proxy)
    proxy = start_proxy("proxy again")
    wait_for(lambda: status_of(gateway) == 200, "the gateway finds the new proxy")
    kill(engine)
    engine = start_engine()
    wait_for(lambda: status_of(gateway) == 200, "the new front has adopted the core")
    assert core.is_running() and not engine.children()
    kill(gateway)
    gateway = keep.enter_context(GatewayProcess(*to_proxy))
    gateway.wait_ready()
    assert status_of(gateway) == 200
    assert core.is_running()
    for process in (gateway, proxy, engine):
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    wait_for(lambda: not is_alive(core), "the core ends with its front")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["core.ipc.lock"]


def in_shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


@takes_long
def test_nothing_is_left_however_an_engine_ends(
    checkpoint: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, keep: ExitStack
) -> None:
    runtime = tmp_path_factory.mktemp("run")  # short: paths of sockets are
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    shared = in_shared_memory()

    def start() -> tuple[EngineProcess, psutil.Process]:
        environment = {"XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(temporary)}
        engine = keep.enter_context(
            EngineProcess(checkpoint, tmp_path, "--orphan-grace-s", "0.5", environment=environment)
        )
        engine.wait_serving(120)
        return engine, engine.core()

    def assert_clean(engine: EngineProcess) -> None:
        engine.assert_no_orphan()
        wait_for(lambda: not list(runtime.iterdir()), "its folder is removed")

    engine, core = start()
    core.kill()
    engine.signal(signal.SIGTERM)  # while nobody serves
    assert engine.wait() == 0
    assert_clean(engine)

    engine, core = start()
    kill(engine)
    assert_clean(engine)

    engine, core = start()
    core.suspend()  # it can do nothing any more
    kill(engine)
    core.kill()
    engine.assert_no_orphan()
    assert list(runtime.iterdir()), "nobody was left to clean up"
    engine, core = start()  # the next one does
    assert len(list(runtime.iterdir())) == 1
    assert "removed what engines that were killed left behind" in engine.output
    engine.signal(signal.SIGTERM)
    assert engine.wait() == 0
    assert_clean(engine)
    assert not list(temporary.iterdir())
    assert in_shared_memory() <= shared
