"""No space left: what cannot be written is not written, and requests are served all the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.chaos.asking import QUESTIONS
from tests.chaos.conftest import FULL, Report
from tests.chaos.stack import MODEL, WholeStack, eventually

from rhizome_testing.engine_process import EngineProcess
from rhizome_testing.ports import free_port, free_ports
from rhizome_testing.processes import ProcessFixture
from rhizome_testing.running_stack import DEMO_MODEL, demo_stack_settings, running_stack

_MOUNT = ("mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs")
_NOWHERE = Path("/dev/full")
_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that takes 64 KiB."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a small tmpfs needs root and Debian's mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        [*_MOUNT, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass


def ask(url: str) -> str:
    answer = _asked(url)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def _asked(url: str) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTIONS[1]}], "temperature": 0}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def nonsense(url: str) -> int:
    """Something that is logged."""
    return httpx.post(f"{url}/v1/chat/completions", content=b"{", headers=_JSON, timeout=30).status_code


@pytest.mark.skipif(not _NOWHERE.exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("workers", [1, 2] if FULL else [1])
def test_a_gateway_whose_log_has_no_space_serves_on(
    stack: WholeStack, tmp_path: Path, report: Report, workers: int
) -> None:
    port = free_port()
    command = [sys.executable, "-m", "rhizome_gateway", "--port", str(port), "--engine", stack.proxy]
    command += ["--workers", str(workers), "--log-level", "DEBUG"]
    with ProcessFixture(command, log=_NOWHERE, name="mute") as gateway:
        url = f"http://127.0.0.1:{port}"
        gateway.wait_until(lambda: _status(f"{url}/ready") == 200, "it serves")
        assert [ask(url) for _ in range(5)] == [ask(stack.url)] * 5
        assert nonsense(url) == 400
        gateway.signal(signal.SIGTERM)
        status = gateway.wait(30)
    report["exit status after SIGTERM"] = status
    assert status == 0, "what could not be logged is no failure"


@pytest.mark.skipif(not FULL, reason="make chaos runs it: a model is loaded")
@pytest.mark.skipif(not _NOWHERE.exists(), reason="only Linux has /dev/full")
def test_an_engine_and_a_proxy_whose_logs_have_no_space_serve_on(tmp_path: Path, report: Report) -> None:
    engine_port, proxy_port, gateway_port = free_ports(3)
    commands = {
        "engine": ["rhizome_engine", "--model", str(DEMO_MODEL), "--served-model-name", MODEL,
                   "--port", str(engine_port), "--num-threads", "1", "--max-cache-tokens", "4096"],
        "proxy": ["rhizome_proxy", "--port", str(proxy_port), "--backends", f"127.0.0.1:{engine_port}"],
        "gateway": ["rhizome_gateway", "--port", str(gateway_port), "--engine", f"127.0.0.1:{proxy_port}"],
    }  # fmt: skip
    url = f"http://127.0.0.1:{gateway_port}"
    mute = [ProcessFixture([sys.executable, "-m", *command], log=_NOWHERE) for command in commands.values()]
    try:
        mute[-1].wait_until(lambda: _status(f"{url}/ready") == 200, "it serves")
        assert ask(url)
        (core,) = mute[0].children()
        core.kill()
        eventually(
            lambda: {one.pid for one in mute[0].children()} - {core.pid} != set(), lambda: "no other core"
        )
        eventually(lambda: _asked(url).status_code == 200, lambda: _asked(url).text, timeout_s=60)
        for one in reversed(mute):
            one.signal(signal.SIGTERM)
            one.wait(40)
        report["exit status after SIGTERM"] = [one.returncode for one in mute]
        assert [one.returncode for one in mute] == [0, 0, 0]
    finally:
        for one in mute:
            one.terminate()


@pytest.mark.skipif(not FULL, reason="make chaos runs it: a stack is started")
def test_a_stack_whose_logs_have_no_space_serves_on(small_disk: Path, report: Report) -> None:
    changes = {"engines": 1, "gateway_arguments": ("--log-level", "DEBUG")}
    with running_stack(demo_stack_settings(small_disk / "logs", **changes)) as running:
        expected = ask(running.url)
        fill(small_disk)
        # More than a pipe holds: who stopped reading what the services say would stop the services.
        for _ in range(400):
            assert nonsense(running.url) == 400
        assert ask(running.url) == expected
    report["answers"] = "the same before and after"


def test_workers_whose_ledger_has_no_space_do_not_start(small_disk: Path, report: Report) -> None:
    """The file of what keys have used is larger than that disk."""
    ended = subprocess.run(
        [sys.executable, "-m", "rhizome_gateway", "--port", "0", "--workers", "2", "--engine", "127.0.0.1:9"],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "TMPDIR": str(small_disk)},
    )  # fmt: skip
    report["ends with"] = f"{ended.returncode}: {ended.stderr.strip()[-100:]}"
    assert ended.returncode == 1 and "No space left" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr


@pytest.mark.skipif(not FULL, reason="make chaos runs it: a model is loaded")
def test_an_engine_whose_socket_folder_is_full_serves_on_and_comes_back(
    small_disk: Path, report: Report
) -> None:
    endpoint = f"ipc://{small_disk}/core.ipc"
    with EngineProcess(DEMO_MODEL, small_disk.parent, "--core-endpoint", endpoint) as engine:
        engine.wait_serving()
        fill(small_disk)
        core = engine.core()
        core.kill()
        engine.wait_until(lambda: "starting it again" in engine.output, "it noticed")
        (small_disk / "filler").unlink()
        engine.wait_serving()
        report["core"] = f"{core.pid} before, {engine.core().pid} after"


def _status(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.TransportError:
        return 0
