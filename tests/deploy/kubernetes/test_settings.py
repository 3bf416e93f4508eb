"""Each container's variables, read by the very settings class that the service reads them with."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic_settings import BaseSettings
from tests.deploy.kubernetes.manifests import REPOSITORY, Manifest, Stack, Workload, needs_kubectl

from rhizome_engine.settings import EngineSettings
from rhizome_gateway.auth.exposure import check_exposure
from rhizome_gateway.settings import GatewaySettings
from rhizome_proxy.settings import ProxySettings
from rhizome_transport.ipc import check_endpoint

pytestmark = needs_kubectl

CLASSES: dict[str, type[BaseSettings]] = {
    "gateway": GatewaySettings,
    "proxy": ProxySettings,
    "engine": EngineSettings,
}
FOREIGN = {"TRITON_CACHE_DIR"}


def read(stack: Stack, container: Manifest) -> Any:
    """The settings that a container's service would have."""
    return _read(CLASSES[container["name"]], tuple(stack.environment(container).items()))


@functools.cache
def _read(kind: type[BaseSettings], variables: tuple[tuple[str, str], ...]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RHIZOME_")]:
            patch.delenv(name)
        for name, value in variables:
            patch.setenv(name, value)
        if kind is EngineSettings:  # it insists on a checkpoint, and ours are on volumes
            patch.setenv("RHIZOME_ENGINE_MODEL", str(REPOSITORY / "models/demo"))
        return kind()


def test_every_variable_is_a_setting_with_that_value(stack: Stack) -> None:
    for workload, container in stack.containers():
        kind = CLASSES[container["name"]]
        prefix = kind.model_config["env_prefix"]
        settings = read(stack, container)
        for name, value in stack.environment(container).items():
            if name in FOREIGN:
                continue
            field = name.removeprefix(prefix).lower()
            assert name.startswith(prefix) and field in kind.model_fields, (
                f"{workload.name}: {name} is no setting"
            )
            if value and field != "model":
                assert _told(getattr(settings, field)) == _told(value), f"{workload.name}: {name}={value}"


def _told(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return str(float(text)) if text.replace(".", "", 1).isdigit() else text


def test_ports_are_those_that_the_services_listen_on(stack: Stack) -> None:
    names = {"gateway": "http", "proxy": "grpc", "engine": "grpc"}
    for workload, container in stack.containers():
        settings = read(stack, container)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports[names[container["name"]]] == settings.port
        metrics = "engine-metrics" if "engine-metrics" in ports else "metrics"
        assert ports[metrics] == settings.metrics_port
        assert settings.metrics_host == "0.0.0.0"
        assert settings.host == "0.0.0.0", f"{workload.name} listens where nobody comes"
        if container["name"] != "gateway" and settings.admin_port:
            assert settings.admin_host == "127.0.0.1", "operators come by port-forward"
            assert settings.admin_port not in ports.values()


def test_containers_of_a_pod_do_not_want_the_same_port(stack: Stack) -> None:
    for workload in stack.workloads:
        taken: list[int] = []
        for container in workload.pod["containers"]:
            settings = read(stack, container)
            taken += [settings.port, settings.metrics_port]
            if container["name"] != "gateway":
                taken.append(settings.admin_port)
        assert len(taken) == len(set(taken)), f"{workload.name}: {taken}"


def test_gateways_have_keys_or_say_that_they_need_none(stack: Stack) -> None:
    for workload, container in stack.containers():
        if container["name"] != "gateway":
            continue
        settings = read(stack, container)
        keys = settings.keys_file
        check_exposure(settings.host, has_keys=keys is not None, allow_open=settings.allow_open)
        assert (keys is None) == ("without-keys" in stack.components)
        mounts = {Path(mount["mountPath"]) for mount in container["volumeMounts"]}
        assert keys is None or keys.parent in mounts, workload.name


def test_gateways_find_the_proxy_and_proxies_the_engines(stack: Stack) -> None:
    for workload, container in stack.containers():
        settings = read(stack, container)
        if container["name"] == "gateway" and settings.engine.startswith("ipc://"):
            _shares_a_socket(stack, workload, settings.engine)
        elif container["name"] == "gateway":
            name, _, port = settings.engine.partition(":")
            assert _target(stack, name, int(port)) == "proxy"
        elif container["name"] == "proxy":
            scheme, _, address = settings.backends.partition(":///")
            name, _, port = address.partition(":")
            assert scheme == "dns", "each engine has to be known by itself"
            assert _target(stack, name, int(port)) == "engine"
            service = stack.named("Service", name)["spec"]
            assert service["clusterIP"] == "None"
            assert service["publishNotReadyAddresses"]


def _target(stack: Stack, name: str, port: int) -> str:
    """The container that answers at a Service's port."""
    service = stack.named("Service", name)
    (workload,) = stack.behind(service)
    (entry,) = (one for one in service["spec"]["ports"] if one["port"] == port)
    for container in workload.pod["containers"]:
        for named in container["ports"]:
            if named["name"] == entry["targetPort"]:
                headless = service["spec"].get("clusterIP") == "None"
                assert not headless or named["containerPort"] == port, "headless names translate no ports"
                return str(container["name"])
    raise AssertionError(f"nothing answers at {name}:{port}")


def _shares_a_socket(stack: Stack, workload: Workload, endpoint: str) -> None:
    engine = workload.container("engine")
    assert read(stack, engine).core_endpoint == endpoint
    folder = check_endpoint(endpoint).parent
    volumes = set()
    for container in workload.pod["containers"]:
        (mount,) = (one for one in container["volumeMounts"] if Path(one["mountPath"]) in folder.parents)
        assert Path(mount["mountPath"]) != folder, "a volume's own directory is not the engine's alone"
        volumes.add(mount["name"])
    assert len(volumes) == 1
    assert "runAsUser" in workload.pod["securityContext"]
    assert not any("runAsUser" in one["securityContext"] for one in workload.pod["containers"])


def test_a_renamed_setting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = Stack("dev-cpu")
    fields = dict(ProxySettings.model_fields)
    fields["drain_limit_s"] = fields.pop("drain_timeout_s")
    monkeypatch.setitem(CLASSES, "proxy", type("Renamed", (ProxySettings,), {}))
    monkeypatch.setattr(CLASSES["proxy"], "__pydantic_fields__", fields)
    with pytest.raises(AssertionError, match="RHIZOME_PROXY_DRAIN_TIMEOUT_S is no setting"):
        test_every_variable_is_a_setting_with_that_value(stack)
