"""A port that somebody else has: every service says which one, and ends with a status that is no success."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.conftest import FULL, Report

from rhizome_testing.ports import free_port
from rhizome_testing.running_stack import DEMO_MODEL

_ENGINE = ("rhizome_engine", "--model", str(DEMO_MODEL))
_PROXY = ("rhizome_proxy", "--backends", "127.0.0.1:9")
_GATEWAY = ("rhizome_gateway", "--engine", "127.0.0.1:9")
TAKEN = {
    "engine": (*_ENGINE, "--port"),
    "engine's operators": (*_ENGINE, "--port", "0", "--admin-port"),
    "engine's metrics": (*_ENGINE, "--port", "0", "--metrics-port"),
    "proxy": (*_PROXY, "--port"),
    "proxy's operators": (*_PROXY, "--port", "0", "--admin-port"),
    "proxy's HTTP face": (*_PROXY, "--port", "0", "--http-port"),
    "gateway": (*_GATEWAY, "--port"),
    "gateway's workers": (*_GATEWAY, "--workers", "2", "--port"),
    "gateway's metrics": (*_GATEWAY, "--port", "0", "--metrics-port"),
    "stack": ("rhizome_launcher", "serve", "--model", str(DEMO_MODEL), "--port"),
}
QUICK = ("engine", "engine's operators", "gateway")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        yield int(other.getsockname()[1])


@pytest.mark.parametrize("who", TAKEN if FULL else QUICK)
def test_a_taken_port_is_named(who: str, taken: int, tmp_path: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        ended = subprocess.run(
            [sys.executable, "-m", *TAKEN[who], str(taken)],
            capture_output=True, text=True, timeout=60, cwd=folder, check=False,
        )  # fmt: skip
    said = ended.stderr + ended.stdout
    last = said.strip().splitlines()[-1] if said.strip() else ""
    report[f"{who} ends with"] = f"{ended.returncode}: {last[-110:]}"
    assert 0 < ended.returncode < 10, said
    assert str(taken) in said, said
    assert "Traceback" not in said, said


@pytest.mark.skipif(not FULL, reason="make chaos runs it")
@pytest.mark.parametrize("host", ["192.0.2.1"])
def test_an_address_that_is_not_ours_is_named(host: str, report: Report) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", *_GATEWAY, "--host", host, "--allow-open", "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    report["gateway ends with"] = ended.returncode
    assert 0 < ended.returncode < 10, ended.stderr
    assert host in ended.stderr and "Traceback" not in ended.stderr, ended.stderr
