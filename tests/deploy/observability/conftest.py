"""A stack of real processes with every number, log line and span switched on, and Prometheus beside it."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from rhizome_testing.otlp_sink import OtlpSink
from rhizome_testing.ports import free_port, free_ports
from rhizome_testing.running_stack import RunningStack, demo_stack_settings, running_stack

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
JOBS = ("gateway", "proxy", "engine")
TENANTS = ("research", "sales")


def promtool() -> str:
    """Where it is; skips what needs it where it is not."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing: install Debian's package prometheus")
    return found


@dataclass(frozen=True)
class Watched:
    """A stack, and where its numbers are.

    Attributes:
        stack: gateway, proxy, one engine.
        metrics: address of `/metrics` by job.
        keys: a key for each tenant.
        logs: the folder of log files.
        http: for everything; making one takes longer than a request.
    """

    stack: RunningStack
    metrics: dict[str, str]
    keys: dict[str, str]
    logs: Path
    http: httpx.Client

    def page(self, job: str) -> str:
        """A service's numbers now."""
        response = self.http.get(f"http://{self.metrics[job]}/metrics")
        assert response.status_code == 200
        return response.text

    def chat(
        self, content: str, tenant: str = "research", headers: Any = None, **fields: Any
    ) -> httpx.Response:
        """Ask something."""
        body = {"model": "rhizome-demo", "messages": [{"role": "user", "content": content}], **fields}
        own = {"Authorization": f"Bearer {self.keys[tenant]}", **(headers or {})}
        return self.http.post(f"{self.stack.url}/v1/chat/completions", json=body, headers=own)


@pytest.fixture(scope="session")
def spans() -> Iterator[OtlpSink]:
    with OtlpSink() as sink:
        yield sink


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory, spans: OtlpSink) -> Iterator[Watched]:
    logs = tmp_path_factory.mktemp("watched")
    keys = {tenant: f"sk-{secrets.token_hex(16)}" for tenant in TENANTS}
    keys_file = logs / "keys.toml"
    keys_file.write_text(
        "".join(
            f'[[keys]]\nname = "{tenant}-key"\ntenant = "{tenant}"\n'
            f'sha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
            for tenant, key in keys.items()
        )
    )
    ports = dict(zip(JOBS, free_ports(3), strict=True))
    environment = {
        **spans.environment,
        **{f"RHIZOME_{job.upper()}_METRICS_PORT": str(port) for job, port in ports.items()},
        **{f"RHIZOME_{job.upper()}_LOG_FORMAT": "json" for job in JOBS},
        "RHIZOME_ENGINE_METRICS_VLLM_NAMES": "true",
        "RHIZOME_ENGINE_TRACE_STEPS": "true",
        "RHIZOME_GATEWAY_KEYS_FILE": str(keys_file),
    }
    settings = demo_stack_settings(logs, engines=1, proxy=True, environment=environment)
    with httpx.Client(timeout=60, trust_env=False) as http, running_stack(settings) as running:
        metrics = {job: f"127.0.0.1:{port}" for job, port in ports.items()}
        yield Watched(running, metrics, keys, logs, http)


class Prometheus:
    """A running Prometheus.

    Attributes:
        url: where it is.
    """

    def __init__(self, url: str, http: httpx.Client) -> None:
        self.url = url
        self._http = http

    def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer.

        Raises:
            AssertionError: it is an error.
        """
        response = self._http.get(f"{self.url}/api/v1/{path}", params=parameters)
        answer = response.json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, expression: str) -> float | None:
        """The only sample of an instant query; None without one."""
        result = self.api("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def wait(self, expression: str, timeout_s: float = 30) -> float:
        """The first sample above 0 that a query gives."""
        deadline = time.monotonic() + timeout_s
        while not (value := self.value(expression)):
            assert time.monotonic() < deadline, f"{expression} stays {value}"
            time.sleep(0.1)
        return value


@pytest.fixture(scope="session")
def prometheus(watched: Watched, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus as `deploy` configures it, but for where the services are and how often it looks."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is missing: install Debian's package prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "rules" / "*.yml")]
    scrapes = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(JOBS) <= set(scrapes)
    for job in JOBS:
        (place,) = scrapes[job].pop("dns_sd_configs")
        assert (place["names"], place["port"]) == ([job], 9464)
        scrapes[job]["static_configs"] = [{"targets": [watched.metrics[job]]}]
    config["scrape_configs"] = [scrapes[job] for job in JOBS]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}", watched.http)
            _wait_ready(prometheus, watched.http, process, folder / "log")
            yield prometheus
        finally:
            process.terminate()


def _wait_ready(
    prometheus: Prometheus, http: httpx.Client, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if http.get(f"{prometheus.url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


_TYPE = re.compile(r"^# TYPE (\S+) (\w+)$", re.MULTILINE)
_SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}


def families(page: str) -> dict[str, str]:
    """Kind of each family on a page of metrics, by name."""
    return dict(_TYPE.findall(page))


def series(page: str) -> set[str]:
    """Names that a query may use."""
    return {
        name + suffix
        for name, kind in families(page).items()
        for suffix in _SUFFIXES.get(kind, ("", "_count", "_sum"))
    }
