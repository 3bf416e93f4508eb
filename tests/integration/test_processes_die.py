"""What a client sees when processes die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
from openai import APIStatusError, OpenAI

from rhizome.proxy.v1 import proxy_service_pb2, proxy_service_pb2_grpc
from rhizome_launcher.service_process import ServiceProcess
from rhizome_testing.running_stack import RunningStack, running_stack
from rhizome_testing.running_stack import demo_stack_settings as stack_settings

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def ask(url: str) -> str:
    with OpenAI(base_url=f"{url}/v1", api_key="not-needed", max_retries=0, timeout=60) as client:
        answer = client.chat.completions.create(
            model="rhizome-demo",
            messages=QUESTION,  # type: ignore[arg-type]
            temperature=0,
        )
        return str(answer.choices[0].message.content)


def in_flight(stack: RunningStack, engine: str) -> int:
    """Requests that the proxy has open at an engine."""
    with grpc.insecure_channel(stack.stack.proxy_address) as channel:
        stub = proxy_service_pb2_grpc.ProxyServiceStub(channel)
        backends = stub.ListBackends(proxy_service_pb2.ListBackendsRequest(), timeout=10).backends
    return next(b.in_flight_requests for b in backends if b.address == engine)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def core_of(engine: ServiceProcess) -> psutil.Process:
    """The core process below an engine's front."""
    (core,) = psutil.Process(engine.pid).children()
    return core


def test_an_engine_that_dies_before_the_first_byte_goes_unnoticed(tmp_path: Path) -> None:
    """One engine is stopped, so that requests hang in it, then killed: every client gets a normal answer."""
    with running_stack(stack_settings(tmp_path)) as stack:
        expected = ask(stack.url)
        victim = stack.service("engine-0")
        core = core_of(victim)
        core.suspend()
        psutil.Process(victim.pid).suspend()
        answers: list[str] = []
        clients: list[threading.Thread] = []

        def hangs() -> bool:
            """Ask once more; where answers are quick, chance may send several to the other engine."""
            clients.append(threading.Thread(target=lambda: answers.append(ask(stack.url))))
            clients[-1].start()
            return in_flight(stack, stack.stack.engine_addresses[0]) > 0

        wait_until(lambda: hangs() and len(clients) >= 6, timeout_s=30)
        core.kill()
        victim.kill()
        for client in clients:
            client.join(30)
        assert answers == [expected] * len(clients)


def test_a_killed_core_comes_back_behind_its_front(tmp_path: Path) -> None:
    with running_stack(stack_settings(tmp_path, engines=1)) as stack:
        expected = ask(stack.url)
        front = stack.service("engine")
        core = core_of(front)
        core.kill()
        core.wait(10)
        deadline = time.monotonic() + 60
        while True:
            try:
                assert ask(stack.url) == expected
                break
            except APIStatusError as error:
                assert error.status_code == 503
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert front.exit_code is None
        assert core_of(front).pid != core.pid


def test_an_engine_keeps_its_model_when_the_gateway_is_killed(tmp_path: Path) -> None:
    with running_stack(stack_settings(tmp_path, engines=1)) as stack:
        expected = ask(stack.url)
        core = core_of(stack.service("engine"))
        gateway = stack.service("gateway")
        gateway.kill()
        stack.run(gateway.wait())
        stack.run(gateway.start())
        deadline = time.monotonic() + 30
        while True:
            try:
                assert ask(stack.url) == expected
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        assert core_of(stack.service("engine")).pid == core.pid


def test_stopping_a_stack_leaves_no_process(tmp_path: Path) -> None:
    with running_stack(stack_settings(tmp_path)) as stack:
        members = [psutil.Process(service.pid) for service in stack.stack.services]
        members += [child for member in members for child in member.children(recursive=True)]
        assert len(members) >= 6
    _, alive = psutil.wait_procs(members, timeout=10)
    assert alive == []
