"""The containers as processes, with the variables, volumes and probes that the manifests give them.

What a cluster adds is put in by hand: ports that are free, loopback in the place of pods' addresses, folders
in the place of volumes. Everything else is as rendered. There is one engine, that of a pair (component
`zmq-sidecar`), and the proxy of the overlay finds it as well.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.deploy.kubernetes.manifests import K8S, REPOSITORY, Manifest, Stack, needs_kubectl

from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture
from rhizome_transport.probe import SERVING, probe

pytestmark = needs_kubectl

MODULES = {"gateway": "rhizome_gateway", "proxy": "rhizome_proxy", "engine": "rhizome_engine"}
STARTS_S = 120.0
PORTS = ("PORT", "METRICS_PORT", "ADMIN_PORT")


class Containers:
    """Processes in the place of containers.

    Args:
        folder: for volumes and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sockets = folder / "run"  # as kubelet makes an emptyDir: everybody may enter
        self.sockets.mkdir()
        self.sockets.chmod(0o777)
        self.ports: dict[tuple[str, int], int] = {}
        self.processes: dict[str, ProcessFixture] = {}
        self.manifests: dict[str, Manifest] = {}

    def start(self, name: str, stack: Stack, container: Manifest) -> ProcessFixture:
        """Start one."""
        prefix = f"RHIZOME_{container['name'].upper()}_"
        variables = stack.environment(container)
        for own in (prefix + port for port in PORTS):
            if own in variables:
                (free,) = free_ports(1)
                self.ports[name, int(variables[own])] = free
                variables[own] = str(free)
        for host in (prefix + host for host in ("HOST", "METRICS_HOST")):
            variables[host] = "127.0.0.1"
        for key, value in variables.items():
            here = value.replace("/run/rhizome", str(self.sockets))
            variables[key] = here.replace("/models/demo", str(REPOSITORY / "models/demo"))
        for (other, port), free in self.ports.items():  # names of Services
            for key in (f"{prefix}ENGINE", f"{prefix}BACKENDS"):
                if key in variables:
                    variables[key] = variables[key].replace(f"{other}:{port}", f"localhost:{free}")
        self.manifests[name] = container
        self.processes[name] = ProcessFixture(
            [sys.executable, "-m", MODULES[container["name"]]],
            log=self._folder / f"{name}.log",
            environment=variables,
            name=name,
        )
        return self.processes[name]

    def passes(self, name: str, kind: str) -> bool:
        """What kubelet would find out."""
        asked = self.manifests[name][f"{kind}Probe"]
        if "grpc" in asked:
            port = self.ports[name, asked["grpc"]["port"]]
            return probe(f"127.0.0.1:{port}", asked["grpc"].get("service", ""))[0] == SERVING
        (port,) = (
            one["containerPort"]
            for one in self.manifests[name]["ports"]
            if one["name"] == asked["httpGet"]["port"]
        )
        return _fetch(f"http://127.0.0.1:{self.ports[name, port]}{asked['httpGet']['path']}")[0] == 200

    def wait(self, name: str, kind: str) -> None:
        """Until a probe succeeds."""
        self.processes[name].wait_until(
            lambda: self.passes(name, kind), f"{name}: its {kind} probe succeeds", STARTS_S
        )

    def metrics(self, name: str) -> str:
        """What Prometheus would read."""
        (port,) = (one["containerPort"] for one in self.manifests[name]["ports"] if "metrics" in one["name"])
        status, text = _fetch(f"http://127.0.0.1:{self.ports[name, port]}/metrics")
        assert status == 200
        return text


def _fetch(url: str, body: object = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """An engine with the gateway beside it, and a proxy with a gateway before it."""
    paired, usual = Stack("dev-cpu", "zmq-sidecar"), Stack("dev-cpu")
    (pair,) = paired.workloads
    containers = Containers(tmp_path_factory.mktemp("stack"))
    with ExitStack() as processes:
        processes.enter_context(containers.start("engine", paired, pair.container("engine")))
        processes.enter_context(containers.start("paired", paired, pair.container("gateway")))
        for name in ("proxy", "gateway"):
            (manifest,) = (one for _, one in usual.containers() if one["name"] == name)
            processes.enter_context(containers.start(name, usual, manifest))
        yield containers


@pytest.mark.parametrize("name", ["engine", "paired", "proxy", "gateway"])
def test_all_probes_succeed(running: Containers, name: str) -> None:
    for kind in ("startup", "readiness", "liveness"):
        running.wait(name, kind)


@pytest.mark.parametrize("name", ["paired", "gateway"])
def test_a_chat_goes_through(running: Containers, name: str) -> None:
    running.wait(name, "readiness")
    body = {"model": "rhizome-demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
    status, text = _fetch(f"http://127.0.0.1:{running.ports[name, 8000]}/v1/chat/completions", body)
    assert status == 200
    assert json.loads(text)["choices"][0]["message"]["content"]


def test_the_pairs_socket_is_the_engines_alone(running: Containers) -> None:
    running.wait("engine", "readiness")
    assert (running.sockets / "engine").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["engine", "paired", "proxy", "gateway"])
def test_numbers_are_told_where_prometheus_looks(running: Containers, name: str) -> None:
    running.wait(name, "readiness")
    service = "gateway" if name == "paired" else name
    assert f"rhizome_{service}_" in running.metrics(name)


def test_scalers_ask_for_numbers_that_there_are(running: Containers) -> None:
    for name in ("engine", "proxy"):
        running.wait(name, "readiness")
    found = {
        line.partition("{")[0].partition(" ")[0]
        for name in ("engine", "proxy")
        for line in running.metrics(name).splitlines()
        if not line.startswith("#")
    }
    asked = set()
    for path in ("autoscaling-keda/scaled-object.yaml", "autoscaling-hpa/adapter-rules.yaml"):
        text = (K8S / "components" / path).read_text()
        asked |= set(re.findall(r"\brhizome_(?:engine|proxy)_\w+", text))
    assert len(asked) == 4
    assert asked <= found


def test_sigterm_ends_all_with_success(running: Containers) -> None:
    """The last of this file."""
    running.wait("gateway", "readiness")
    for name in ("gateway", "paired", "proxy", "engine"):
        running.processes[name].signal(signal.SIGTERM)
        assert running.processes[name].wait(60.0) == 0, name
