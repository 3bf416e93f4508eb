"""The `rhizome` command as a person types it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from rhizome_launcher import doctor
from rhizome_launcher.plan import StackSettings
from rhizome_launcher.ports import port_is_free
from rhizome_launcher.stack import Stack
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

ROOT = Path(__file__).resolve().parents[2]
DEMO_MODEL = ROOT / "models" / "demo"
DEMO = ["demo", "--model", str(DEMO_MODEL)]
DEAD_PROXY = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
"""Services on one host must not ask an HTTP proxy of the environment for each other."""
RHIZOME = [sys.executable, "-m", "rhizome_launcher"]


@contextmanager
def rhizome(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run the command; yield the process and the file with its output."""
    output = cwd / "output.txt"
    with output.open("w") as stream:
        process = subprocess.Popen(
            [*RHIZOME, *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            text=True,
            env={**os.environ, **DEAD_PROXY, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
        )
        try:
            yield process, output
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)


def wait_for_text(output: Path, text: str, process: subprocess.Popen[str], timeout_s: float = 90) -> str:
    deadline = time.monotonic() + timeout_s
    while text not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)
    return output.read_text()


def children_of(process: subprocess.Popen[str], *, at_least: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while len(children := psutil.Process(process.pid).children(recursive=True)) < at_least:
        assert time.monotonic() < deadline, children
        time.sleep(0.02)
    return children


def free_port(start: int) -> int:
    return next(port for port in range(start, start + 500) if port_is_free("127.0.0.1", port))


def test_demo_shows_an_answer_and_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    with rhizome(*DEMO, "--port", "18100", cwd=tmp_path) as (process, output):
        text = wait_for_text(output, "Ctrl-C stops everything", process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 6
        assert re.search(r"trace id +[0-9a-f]{32}", text), text
        assert re.search(r"usage +\d+ prompt", text), text
        assert "time_to_first_token_ms" in text
        url = re.search(r"http://127\.0\.0\.1:\d+", text)
        assert url and httpx.get(f"{url[0]}/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []


def test_serve_runs_a_users_checkpoint(tmp_path: Path) -> None:
    model = write_llama_checkpoint(tmp_path / "my-model", LlamaShape())
    port = free_port(18200)
    with rhizome("serve", "--model", str(model), "--port", str(port), cwd=tmp_path) as (process, output):
        wait_for_text(output, "ready: http", process)
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json={
                "model": "my-model",
                "messages": [{"role": "user", "content": "Hello"}],
                "max_tokens": 5,
            },
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] >= 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0


def test_ctrl_c_while_the_demo_starts_stops_every_process(tmp_path: Path) -> None:
    with rhizome(*DEMO, "--port", "18300", cwd=tmp_path) as (process, output):
        wait_for_text(output, "starting", process)
        children = children_of(process, at_least=4)
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 130, output.read_text()
        assert "ready after" not in output.read_text()
        assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_second_ctrl_c_waits_for_nobody(tmp_path: Path) -> None:
    with rhizome(*DEMO, "--port", "18400", cwd=tmp_path) as (process, output):
        wait_for_text(output, "Ctrl-C stops everything", process)
        children = children_of(process, at_least=6)
        for child in children:
            child.suspend()
        process.send_signal(signal.SIGINT)
        wait_for_text(output, "stopping", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(8) == 130
        assert psutil.wait_procs(children, timeout=10)[1] == []
        assert "Traceback" not in output.read_text()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serve", "--model", "."], "there is no config.json"),
        (["serve", "--model", "no[/such]thing"], "no[/such]thing is no checkpoint"),
        (["serve", "--model", str(DEMO_MODEL), "--host", "203.0.113.9"], "choose an address of this machine"),
        (["demo"], "Run this from the repository's root"),
    ],
)
def test_what_keeps_a_stack_from_starting_is_explained(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    result = subprocess.run(
        [*RHIZOME, *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path
    )
    assert result.returncode == 1
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        result = subprocess.run(
            [*RHIZOME, "serve", "--model", str(DEMO_MODEL), "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
    assert (result.returncode, result.stderr) == (
        1,
        f"error: port {port} on 127.0.0.1 is taken; choose another one with --port.\n",
    )


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_printed_address_can_be_opened_here(host: str, url: str) -> None:
    assert Stack(StackSettings(model=DEMO_MODEL, host=host)).url == url


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda module: module not in ("rhizome_engine", "openai"))
    report = doctor.examine()
    assert [text.split(":")[0] for text in report.missing] == ["rhizome_engine"]
    assert report.device == "unknown"
    doctor.print_report(report, as_json=False)
    assert "services/engine" in capsys.readouterr().out


def test_doctor_reports_the_machine() -> None:
    result = subprocess.run(
        [*RHIZOME, "doctor", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    report = json.loads(result.stdout)
    assert set(report) >= {"device", "dtype", "attention", "memory", "ports", "missing"}
    assert report["memory"]["total_bytes"] == psutil.virtual_memory().total
    assert result.returncode == (1 if report["missing"] else 0)
