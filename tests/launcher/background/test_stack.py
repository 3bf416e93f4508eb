"""`rhizome up`, `status`, `restart`, `logs` and `down` on a real stack, as a person types them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rhizome_launcher.background.state_dir import StateDir
from rhizome_launcher.background.status import EXIT_HEALTHY, look
from rhizome_launcher.service_process import is_alive
from rhizome_launcher.stack import marked
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint
from rhizome_testing.ports import free_port
from rhizome_testing.running_stack import DEMO_MODEL

RHIZOME = [sys.executable, "-m", "rhizome_launcher"]
FULL = os.environ.get("RHIZOME_STACKS") == "full"
ONE_ENGINE = '[[engines]]\nmodel = "{model}"\n[engines.options]\ndevice = "cpu"\n'
HELLO = [{"role": "user", "content": "Hello"}]
ENVIRONMENT = {
    "RHIZOME_PROXY_POLL_TIMEOUT_S": "10",  # a busy machine
    "COLUMNS": "200",
    # Services on one host must not ask an HTTP proxy of the environment for each other.
    "http_proxy": "http://127.0.0.1:9",
    "no_proxy": "",
}


class Terminal:
    """Somebody who types commands.

    Attributes:
        folder: of the stack's state.
        url: of its gateway.
    """

    def __init__(self, folder: Path, file: str = "") -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.file = folder.parent / f"{folder.name}.toml"
        self.file.write_text(f"port = {self.port}\nproxy_port = {free_port()}\n{file}")

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command that ends with `code`; what it printed."""
        done = subprocess.run(
            [*RHIZOME, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
            env=self.environment,
        )
        assert done.returncode == code, done.stdout
        assert arguments[0] == "logs" or "Traceback" not in done.stdout
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **ENVIRONMENT, "RHIZOME_STATE_DIR": str(self.folder)}

    def up(self, *arguments: str, code: int = 0) -> str:
        return self.run("up", "--file", str(self.file), "--timeout", "90", *arguments, code=code)

    def status(self, code: int = 0) -> dict[str, Any]:
        seen: dict[str, Any] = json.loads(self.run("status", "--json", code=code))
        seen["services"] = {service["name"]: service for service in seen["services"]}
        return seen

    def healthy(self) -> bool:
        """What `rhizome status` would say, without starting a command."""
        return asyncio.run(look(StateDir(self.folder))).exit_code == EXIT_HEALTHY

    def state(self) -> dict[str, Any]:
        """As the supervisor wrote it; cheaper than a command."""
        services = StateDir(self.folder).read_state().services
        return {name: (record.state, record.pid, record.restarts) for name, record in services.items()}

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.state()
            time.sleep(0.2)

    def ask(self, model: str = "demo", **options: Any) -> httpx.Response:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 4,
            **options,
        }
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(f"{self.url}/v1/chat/completions", json=body)

    def mark(self) -> str:
        plan = StateDir(self.folder).read_plan()
        assert plan is not None
        return plan.stack.mark

    def kill_supervisor(self) -> int:
        supervisor = psutil.Process(StateDir(self.folder).read_state().supervisor_pid)
        supervisor.kill()
        self.wait_until(lambda: not StateDir(self.folder).is_supervised())
        return supervisor.pid

    def assert_nothing_is_left(self, mark: str) -> None:
        assert marked(mark) == []
        assert [path.name for path in self.folder.iterdir()] == ["logs"]
        assert self.status(code=3)["status"] == "not running"


@contextlib.contextmanager
def terminal(file: str) -> Iterator[Terminal]:
    with tempfile.TemporaryDirectory(prefix="up-") as name:
        one = Terminal(Path(name) / "stack", file)
        try:
            yield one
        finally:
            one.run("down", "--timeout", "0")


@pytest.fixture(scope="module")
def stack() -> Iterator[Terminal]:
    """Two engines on the bundled model, started from a terminal that is closed afterwards."""
    file = f'[[engines]]\nmodel = "{DEMO_MODEL}"\ncount = 2\n'
    file += '[engines.options]\ndevice = "cpu"\nmax-cache-tokens = 4096\n'
    with terminal(file) as one:
        pid, screen = pty.fork()
        if not pid:
            os.execve(
                sys.executable, [*RHIZOME, "up", "--file", str(one.file), "--timeout", "90"], one.environment
            )
        printed = b""
        with contextlib.suppress(OSError):  # how the end of a terminal reads
            while some := os.read(screen, 4096):
                printed += some
        _, status = os.waitpid(pid, 0)
        os.close(screen)
        assert os.waitstatus_to_exitcode(status) == 0, printed.decode()
        assert f"{one.url}/v1".encode() in printed
        yield one


def test_all_services_are_up_and_belong_to_no_terminal(stack: Terminal) -> None:
    seen = stack.status()
    assert (seen["status"], seen["url"], seen["models"]) == ("healthy", stack.url, ["demo"])
    assert list(seen["services"]) == ["engine-0", "engine-1", "proxy", "gateway"]
    for service in seen["services"].values():
        assert (service["state"], service["restarts"], service["serving"]) == ("running", 0, True)
        assert psutil.Process(service["pid"]).terminal() is None
        assert service["rss_bytes"] > 10 << 20 and service["uptime_s"] > 0
    engine = seen["services"]["engine-0"]
    assert (engine["running_requests"], engine["waiting_requests"], engine["kv_use"]) == (0, 0, 0.0)
    assert engine["processes"] == 2, "the front and the core"
    assert psutil.Process(seen["supervisor_pid"]).terminal() is None
    assert stack.ask().status_code == 200
    table = stack.run("status")
    assert f"supervisor {seen['supervisor_pid']}" in table and "serving with 2 of 2 engines" in table


def test_up_twice_is_up_once(stack: Terminal) -> None:
    before = stack.state()
    assert "is up already" in stack.up()
    assert stack.state() == before
    printed = stack.run("up", "--model", str(DEMO_MODEL), code=1)
    assert "another stack is up in" in printed and "--state-dir" in printed
    assert stack.state() == before


def test_a_service_that_dies_comes_back(stack: Terminal) -> None:
    _, pid, restarts = stack.state()["gateway"]
    psutil.Process(pid).kill()
    stack.wait_until(lambda: stack.state()["gateway"][2] > restarts)
    stack.wait_until(stack.healthy)
    seen = stack.status()["services"]["gateway"]
    assert seen["restarts"] == restarts + 1 and seen["pid"] != pid
    assert seen["last_exit_code"] == -signal.SIGKILL
    assert stack.ask().status_code == 200


def test_engines_are_restarted_one_by_one_and_nobody_notices(stack: Terminal) -> None:
    before = stack.state()
    codes: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.05):
            codes.append(stack.ask().status_code)

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        printed = stack.run("restart", "engines" if FULL else "engine-0")
    finally:
        done.set()
        for client in clients:
            client.join(60)
    after = stack.state()
    assert "engine-0 serves again" in printed
    assert [name for name in after if after[name][1] != before[name][1]] == ["engine-0", "engine-1"][
        : 1 + FULL
    ]
    if FULL:
        assert printed.index("engine-0 serves again") < printed.index("restarting engine-1")
    assert len(codes) >= 2 and set(codes) == {200}
    assert "there is no service 'engin-0'; there are engine-0" in stack.run("restart", "engin-0", code=1)


def test_the_logs_are_in_one_place(stack: Terminal) -> None:
    lines = stack.run("logs", "--lines", "1000").splitlines()
    assert any("gateway |" in line and "serving demo" in line for line in lines)
    assert any("supervisor |" in line and "engine-0: started process" in line for line in lines)
    stamps = [line.partition("|")[2].split()[0] for line in lines if "| 20" in line]
    assert stamps == sorted(stamps)
    only = stack.run("logs", "proxy", "--lines", "1").splitlines()
    assert len(only) == 1 and "proxy |" in only[0]
    assert "there is no log of 'engine-7'" in stack.run("logs", "engine-7", code=1)
    with subprocess.Popen(
        [*RHIZOME, "logs", "gateway", "--follow", "--lines", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env=stack.environment,
    ) as following:
        assert following.stdout is not None
        log = StateDir(stack.folder).log("gateway")
        stop = threading.Event()

        def write() -> None:
            while not stop.wait(0.1):
                with log.open("a") as file:
                    file.write("a new line\n")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert "a new line" in following.stdout.readline()
        finally:
            stop.set()
            writer.join()
            following.send_signal(signal.SIGINT)
    assert following.returncode == 0


def test_services_outlive_their_supervisor_and_the_next_one_adopts_them(stack: Terminal) -> None:
    before = stack.state()
    killed = stack.kill_supervisor()
    assert stack.ask().status_code == 200
    seen = stack.status(code=1)
    assert (seen["status"], seen["supervisor_pid"]) == ("degraded", 0)
    assert "services of another stack run" in stack.run("up", "--model", str(DEMO_MODEL), code=1)
    assert "no stack is up" in stack.run("restart", "proxy", code=1)
    assert "taking over" in stack.up()
    seen = stack.status()
    assert seen["supervisor_pid"] != killed
    assert stack.state() == before
    psutil.Process(before["proxy"][1]).kill()  # an adopted one is looked after, too
    stack.wait_until(lambda: stack.state()["proxy"][2] == before["proxy"][2] + 1)
    stack.wait_until(stack.healthy)


def test_down_lets_an_answer_end_and_leaves_nothing_behind(stack: Terminal) -> None:
    mark = stack.mark()
    members = marked(mark)
    assert len(members) == 6, members
    body = {"model": "demo", "messages": [{"role": "user", "content": "Count from 1 to 20"}], "stream": True}
    with httpx.Client(trust_env=False, timeout=60) as client:
        url = f"{stack.url}/v1/chat/completions"
        with client.stream("POST", url, json={**body, "max_tokens": 200, "ignore_eos": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            going_down = subprocess.Popen(
                [*RHIZOME, "down"], stdout=subprocess.PIPE, text=True, env=stack.environment
            )
            rest = list(lines)
    printed, _ = going_down.communicate(timeout=90)
    assert going_down.returncode == 0 and "stopped after" in printed, printed
    assert "data: [DONE]" in rest and not any('"error"' in line for line in rest), rest[-3:]
    stack.assert_nothing_is_left(mark)
    assert not any(is_alive(process) for process in members)
    assert "nothing runs in" in stack.run("down")


def test_two_at_once_are_one_and_neither_a_frozen_supervisor_nor_an_orphan_stays(tmp_path: Path) -> None:
    model = write_llama_checkpoint(tmp_path / "tiny", LlamaShape())
    with terminal(ONE_ENGINE.format(model=model)) as one:
        up = [*RHIZOME, "up", "--file", str(one.file), "--no-wait"]
        two = [subprocess.Popen(up, env=one.environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        printed = [each.communicate(timeout=60)[0] for each in two]
        assert [each.returncode for each in two] == [0, 0], printed
        assert sum("is up already" in text for text in printed) == 1, printed
        mark = one.mark()
        one.wait_until(lambda: any("rhizome_engine.core" in process.cmdline() for process in marked(mark)))
        psutil.Process(StateDir(one.folder).read_state().supervisor_pid).suspend()
        psutil.Process(one.state()["engine"][1]).kill()  # nobody looks after its core any more
        assert "stopped after" in one.run("down", "--timeout", "2")
        one.assert_nothing_is_left(mark)


def test_what_cannot_serve_is_explained_and_taken_down() -> None:
    with terminal(f'[[engines]]\nmodel = "{DEMO_MODEL}"\n[engines.options]\nmax-step-token = 4\n') as one:
        printed = one.up(code=1)
        assert "engine ended with exit code 2 before it was ready" in printed
        assert "--max-step-token" in printed, "the end of its log"
        assert one.state() == {}


@pytest.mark.skipif(not FULL, reason="starts seven processes; RHIZOME_STACKS=full runs it")
def test_several_models_are_behind_one_address(tmp_path: Path) -> None:
    model = write_llama_checkpoint(tmp_path / "tiny", LlamaShape())
    engines = "".join(
        f'[[engines]]\nmodel = "{path}"\n[engines.options]\ndevice = "cpu"\n' for path in (DEMO_MODEL, model)
    )
    with terminal(engines) as one:
        assert "models demo, tiny" in one.up()
        assert list(one.status()["services"])[-1] == "router"
        for name in ("demo", "tiny"):
            answer = one.ask(name)
            assert (answer.status_code, answer.json()["model"]) == (200, name)
        mark = one.mark()
        one.run("down")
        one.assert_nothing_is_left(mark)
