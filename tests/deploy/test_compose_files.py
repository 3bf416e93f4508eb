"""What the files of `deploy/compose` promise, read without a daemon."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy import compose_files
from tests.deploy.compose_files import ALL, COMPOSE, LLAMACPP, OVERLAYS, STACK, read, seconds, services, whole

from rhizome_engine.settings import EngineSettings
from rhizome_gateway.settings import GatewaySettings
from rhizome_proxy.settings import _COMMON_NAMES, ProxySettings

OURS = {"gateway": GatewaySettings, "proxy": ProxySettings, "engine": EngineSettings}
EVERYTHING = (STACK, *OVERLAYS)
COMBINATIONS = [
    *(
        (STACK, *some)
        for count in range(len(OVERLAYS) + 1)
        for some in itertools.combinations(OVERLAYS, count)
    ),
    (LLAMACPP,),
]
KNOWN_TO_BOTH = {
    *("image", "command", "entrypoint", "environment", "volumes", "ports", "networks", "depends_on"),
    *("healthcheck", "restart", "init", "read_only", "user", "cap_drop", "security_opt", "pids_limit"),
    *("tmpfs", "logging", "mem_limit", "cpus", "stop_grace_period", "stop_signal", "scale", "shm_size"),
    *("ulimits", "deploy"),
}
"""Keys of services that docker-compose 1.29 and the compose plugin read alike; not `gpus`, not `include`."""
FILES = {"stack": (STACK,), "everything": EVERYTHING, "llamacpp": (LLAMACPP,)}


def named(files: tuple[str, ...]) -> str:
    """A combination, for people."""
    return "+".join(part[8:-5] or "stack" for part in files)


def compose_command() -> list[str] | None:
    """The compose that is installed here, the newer one first."""
    if shutil.which("docker"):
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if plugin.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def put_together(files: Sequence[str], *options: str) -> str:
    """What compose makes of several files, as YAML; skips without compose.

    Raises:
        AssertionError: it does not take them.
    """
    command = compose_command()
    if command is None:
        pytest.skip("needs docker-compose (Debian: docker-compose)")
    listed = [part for name in files for part in ("-f", name)]
    done = subprocess.run(
        [*command, *options, *listed, "config"],
        cwd=COMPOSE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "files", [(STACK,), EVERYTHING, (LLAMACPP,)], ids=["stack", "everything", "llamacpp"]
)
def test_compose_takes_the_files(files: tuple[str, ...]) -> None:
    told = put_together(files, "--env-file", ".env.example")
    assert set(re.findall(r"^  ([\w-]+):$", told.partition("services:")[2], re.M)) >= set(whole(*files))


@pytest.mark.parametrize("name", ALL)
def test_only_what_old_and_new_compose_read_alike(name: str) -> None:
    document = read(name)
    assert {key for key in document if not key.startswith("x-")} <= {"services", "networks", "volumes"}
    for service, content in document["services"].items():
        assert set(content) <= KNOWN_TO_BOTH, service


def locked(service: dict[str, Any]) -> None:
    """Nothing more than it needs."""
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service
    for setting in ("mem_limit", "cpus", "pids_limit"):
        assert service[setting], setting
    assert service["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])
    assert service.get("user", "0").partition(":")[0] not in ("0", "root", "") or "jaeger" in service["image"]
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "others than this machine come in only where somebody says so"
    for mount in service.get("volumes", []):
        source, _, rest = mount.partition(":")
        assert rest.endswith(":ro") or "/" not in source, f"{mount} can be written to"


@pytest.mark.parametrize("files", [EVERYTHING, (LLAMACPP,)], ids=["stack", "llamacpp"])
def test_every_container_is_locked_down(files: tuple[str, ...]) -> None:
    for name, service in whole(*files).items():
        try:
            locked(service)
        except (AssertionError, KeyError) as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize(
    "files", COMBINATIONS, ids=lambda files: "+".join(part[8:-5] or "stack" for part in files)
)
def test_ours_start_in_order_and_have_time_to_drain(files: tuple[str, ...]) -> None:
    together = whole(*files)
    for name, service in together.items():
        if not service["image"].startswith("rhizome/"):
            continue
        probe = service["healthcheck"]["test"]
        assert probe[:3] == ["CMD", "python", "-m"], name
        assert probe[3] in ("rhizome_transport.probe", "rhizome_gateway.probe"), name
        drain = [
            float(v)
            for k, v in service["environment"].items()
            if k.endswith(("DRAIN_TIMEOUT_S", "SHUTDOWN_S"))
        ]
        assert len(drain) == 1, name
        assert seconds(service["stop_grace_period"]) >= drain[0] + 10, name
    for name, service in together.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in together[needed], (
                f"{name} waits for {needed}, which never says that it is healthy"
            )
    order = {"gateway": "proxy", "proxy": "engine", "nginx": "gateway"}
    if LLAMACPP in files:
        order = {"nginx": "proxy", "proxy": "llm-1"}
    for later, earlier in order.items():
        assert later not in together or earlier in together[later]["depends_on"]


def test_settings_are_settings() -> None:
    """A variable that no service reads is a setting that somebody believes in."""
    for name, service in [*whole(*EVERYTHING).items(), *whole(LLAMACPP).items()]:
        kind = OURS.get(name)
        if kind is None:
            continue
        prefix = f"RHIZOME_{name.upper()}_"
        for variable in service["environment"]:
            if variable.startswith("OTEL_") or variable in _COMMON_NAMES.values():
                continue
            assert variable.startswith(prefix), f"{name}: {variable}"
            assert variable.removeprefix(prefix).lower() in kind.model_fields, f"{name}: {variable}"


def test_services_listen_where_others_look_for_them() -> None:
    together = whole(*EVERYTHING)
    assert together["gateway"]["environment"]["RHIZOME_GATEWAY_ENGINE"] == f"proxy:{_port(ProxySettings)}"
    assert (
        together["proxy"]["environment"]["RHIZOME_PROXY_BACKENDS"] == f"dns:///engine:{_port(EngineSettings)}"
    )
    assert together["gateway"]["ports"] == [f"127.0.0.1:8000:{_port(GatewaySettings)}"]
    assert together["proxy"]["healthcheck"]["test"][4] == f"127.0.0.1:{_port(ProxySettings)}"
    assert together["engine"]["healthcheck"]["test"][4] == f"127.0.0.1:{_port(EngineSettings)}"
    assert together["gateway"]["healthcheck"]["test"][4] == f"http://127.0.0.1:{_port(GatewaySettings)}/ready"
    for name in OURS:
        assert together[name]["environment"][f"RHIZOME_{name.upper()}_METRICS_PORT"] == "9464"
    assert together["proxy"]["networks"] == ["back"] == together["engine"]["networks"]
    assert read(STACK)["networks"]["back"] == {"internal": True}


def _port(settings: Any) -> int:
    return int(settings.model_fields["port"].default)


def test_what_is_mounted_is_there() -> None:
    made = {"keys.toml", "tls", "models"}  # by who runs it
    for name in ALL:
        for service, content in services(name):
            for mount in content.get("volumes", []):
                source = mount.partition(":")[0]
                if "/" in source and not made & set(source.split("/")[1:2]):
                    assert (COMPOSE / source).exists(), f"{name}, {service}: {source}"


def test_every_variable_is_in_the_example_with_its_default() -> None:
    example = (COMPOSE / ".env.example").read_text()
    told = dict(re.findall(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", example, re.M))
    commented = set(re.findall(r"^# ([A-Z][A-Z_]+)=", example, re.M))
    used: dict[str, set[str]] = {}
    for name in ALL:
        for variable, defaults in compose_files.variables(name).items():
            used.setdefault(variable, set()).update(defaults)
    assert set(told) == set(used), "these do nothing, or nobody is told of them"
    for variable in commented:
        assert told[variable] in used[variable], f"{variable} has another default"
    seeds = {"PORT", "MODEL_DIR", "MODEL", "BACKENDS", "METRICS_CACHE_TTL_SECONDS", "BACKEND_TIMEOUT_SECONDS"}
    assert (seeds | {"MAX_ALLOWED_REQUEST_QUEUE", "MAX_ALLOWED_DEFERRED"}) <= set(told) - commented


def test_the_gpu_goes_to_one_engine() -> None:
    engine = whole(STACK, "compose.gpu.yaml")["engine"]
    (device,) = engine["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}
    assert engine["scale"] == 1
    assert engine["image"].endswith("-cuda")


def test_what_is_compiled_for_a_gpu_is_kept_where_it_may_be_loaded() -> None:
    """A tmpfs of Docker is `noexec`, and Triton loads what it made; a new volume is owned like its folder."""
    dockerfile = (COMPOSE.parents[1] / "services/engine/Dockerfile.cuda").read_text()
    cache = re.search(r"TRITON_CACHE_DIR=(\S+)", dockerfile)
    owned = re.search(r"install -d -o 65532 -g 65532 -m 0700 (.*) \\", dockerfile)
    assert cache is not None and owned is not None
    engine = whole(STACK, "compose.gpu.yaml")["engine"]
    mounts = dict(mount.split(":", 1)[::-1] for mount in engine["volumes"])
    folder = cache[1].rpartition("/")[0]
    assert folder in owned[1].split()
    assert mounts[folder] in read("compose.gpu.yaml")["volumes"]
    assert not [one for one in engine["tmpfs"] if cache[1].startswith(one.partition(":")[0])]


def test_the_files_that_the_readme_shows_go_on_top(tmp_path: Path) -> None:
    """Compose takes them, and no variable in them is one that a service does not read."""
    shown = re.findall(r"^```yaml\n(.*?)^```$", (COMPOSE / "README.md").read_text(), re.M | re.S)
    assert len(shown) >= 2
    for number, text in enumerate(shown):
        on_top = tmp_path / f"{number}.yaml"
        on_top.write_text(text.replace("file: compose.yaml", f"file: {COMPOSE / STACK}"))
        files = [STACK, "compose.gpu.yaml"] if "extends" in text else [STACK]
        for name, service in yaml.safe_load(put_together([*files, str(on_top)]))["services"].items():
            kind = name.partition("-")[0]
            for variable in service["environment"]:
                field = variable.removeprefix(f"RHIZOME_{kind.upper()}_").lower()
                assert field in OURS[kind].model_fields, f"{name}: {variable}"
