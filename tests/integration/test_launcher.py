"""The `rhizome` command as a person types it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from rhizome_launcher.stack import port_is_free
from rhizome_testing.checkpoints import LlamaShape, write_llama_checkpoint

ROOT = Path(__file__).resolve().parents[2]
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
            env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
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


def free_port(start: int) -> int:
    return next(port for port in range(start, start + 500) if port_is_free("127.0.0.1", port))


def test_demo_shows_an_answer_and_ctrl_c_stops_every_process(tmp_path: Path) -> None:
    arguments = ["demo", "--model", str(ROOT / "models" / "demo"), "--port", "18100"]
    with rhizome(*arguments, cwd=tmp_path) as (process, output):
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


def test_serve_explains_a_missing_checkpoint(tmp_path: Path) -> None:
    result = subprocess.run(
        [*RHIZOME, "serve", "--model", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 1
    assert "config.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_reports_the_machine() -> None:
    result = subprocess.run(
        [*RHIZOME, "doctor", "--json"], capture_output=True, text=True, timeout=120, check=False
    )
    report = json.loads(result.stdout)
    assert set(report) >= {"device", "dtype", "attention", "memory", "ports", "missing"}
    assert report["memory"]["total_bytes"] == psutil.virtual_memory().total
    assert result.returncode == (1 if report["missing"] else 0)
