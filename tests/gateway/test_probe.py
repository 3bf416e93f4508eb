"""The probe of containers, against a gateway in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from rhizome_gateway.probe import NO, UNREACHABLE, YES, main, probe
from rhizome_testing.gateway_process import GatewayProcess
from rhizome_testing.ports import free_port


def test_a_gateway_without_an_engine_lives_but_is_not_ready(tmp_path: Path) -> None:
    with GatewayProcess(f"127.0.0.1:{free_port()}", tmp_path) as gateway:
        gateway.wait_for_port(gateway.port)
        assert probe(f"{gateway.url}/health") == (YES, f"{gateway.url}/health: 200")
        assert probe(f"{gateway.url}/ready") == (NO, f"{gateway.url}/ready: 503")
        asked = subprocess.run(
            [sys.executable, "-m", "rhizome_gateway.probe"],
            env={"RHIZOME_GATEWAY_PORT": str(gateway.port), "http_proxy": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (asked.returncode, asked.stdout) == (NO, "")
    assert asked.stderr == f"{gateway.url}/ready: 503\n"


def test_nobody_answers() -> None:
    code, line = probe(f"http://127.0.0.1:{free_port()}/health", timeout_s=2)
    assert code == UNREACHABLE
    assert "refused" in line


def test_what_is_no_url_is_said_to_be_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["https://127.0.0.1/health"])
    assert caught.value.code == 2
    assert "is no http:// URL" in capsys.readouterr().err
