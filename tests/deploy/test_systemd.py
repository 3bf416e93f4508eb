"""The units in deploy/systemd: systemd takes them, little is open to them, and they start what they say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from rhizome_engine.settings import EngineSettings
from rhizome_gateway.settings import GatewaySettings
from rhizome_proxy.settings import ProxySettings
from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "deploy" / "systemd"
DEMO_MODEL = ROOT / "models" / "demo"
BIN = Path(sys.executable).parent
INSTALLED = "/opt/rhizome/bin"
ENGINE, PROXY, GATEWAY = "rhizome-engine@.service", "rhizome-proxy.service", "rhizome-gateway.service"
SERVICES = [ENGINE, PROXY, GATEWAY]
SETTINGS = {
    "RHIZOME_ENGINE_": EngineSettings,
    "RHIZOME_PROXY_": ProxySettings,
    "RHIZOME_GATEWAY_": GatewaySettings,
}
MOST_EXPOSURE = 40  # 4.0, of 10
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing: apt-get install systemd"
)

# What systemd does between fork and exec, as far as it can be done here: no environment but the unit's, files
# for their owner alone, no memory that is written and executed (prctl 65), and a watchdog of this process.
EXEC_AS_A_UNIT = """
import ctypes, json, os, sys
environment = json.loads(sys.argv[1])
os.umask(0o077)
if sys.argv[2] == "deny":
    ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
environment["WATCHDOG_PID"] = str(os.getpid())
os.execve(sys.argv[3], sys.argv[3:], environment)
"""


class Unit:
    """A service file, with the specifiers that it uses filled in."""

    def __init__(self, name: str, run: Path, cache: Path, instance: str = "a") -> None:
        specifiers = {"%i": instance, "%t": str(run), "%C": str(cache)}
        text = (UNITS / name).read_text()
        text = re.sub(r"%.", lambda found: specifiers[found[0]], text).replace(INSTALLED, str(BIN))
        self.entries = [
            (key, value)
            for line in text.splitlines()
            if not line.startswith(("#", "[")) and "=" in line
            for key, _, value in [line.partition("=")]
        ]

    def get(self, key: str) -> str:
        return next(value for name, value in reversed(self.entries) if name == key)

    def environment(self) -> dict[str, str]:
        return dict(value.split("=", 1) for key, value in self.entries if key == "Environment")

    @property
    def exit_codes_that_stay(self) -> set[int]:
        return {int(code) for code in self.get("RestartPreventExitStatus").split()}


def variables(path: Path) -> dict[str, str]:
    """An EnvironmentFile."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@dataclass
class Manager:
    """The socket of a service manager, and what it was told."""

    socket: socket.socket
    address: str
    told: list[str]

    def hears(self, line: str) -> bool:
        try:
            while True:
                self.told += self.socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return line in self.told


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name, because sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="units-") as name:
        path = Path(name)
        for part in ("run/rhizome", "cache/rhizome"):
            (path / part).mkdir(parents=True, mode=0o700)
        yield path


def unit_of(name: str, folder: Path) -> Unit:
    return Unit(name, folder / "run", folder / "cache")


def start(
    unit: Unit, name: str, folder: Path, stack: ExitStack, more: Mapping[str, str]
) -> tuple[ProcessFixture, Manager]:
    """Do what systemd does with a unit of `Type=notify`."""
    channel = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    address = str(folder / f"{name}.notify")
    channel.bind(address)
    channel.setblocking(False)
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/",
        "NOTIFY_SOCKET": address,
        "WATCHDOG_USEC": str(int(float(unit.get("WatchdogSec")) * 1e6)),
        **unit.environment(),
        **more,
    }
    writes_code = "allow" if unit.get("MemoryDenyWriteExecute") == "no" else "deny"
    command = unit.get("ExecStart").split()
    process = stack.enter_context(
        ProcessFixture(
            [sys.executable, "-c", EXEC_AS_A_UNIT, json.dumps(environment), writes_code, *command],
            log=folder / f"{name}.log",
            name=name,
        )
    )
    return process, Manager(channel, address, [])


def stop(unit: Unit, process: ProcessFixture, manager: Manager) -> None:
    """`systemctl stop`, with the unit's patience."""
    process.children()
    started = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.wait(float(unit.get("TimeoutStopSec"))) == 0, process.output
    assert manager.hears("STOPPING=1"), manager.told
    process.assert_no_orphan(max(1.0, float(unit.get("TimeoutStopSec")) - (time.monotonic() - started)))


def test_what_the_units_start_does_what_they_say(folder: Path) -> None:
    """The gateway first, and the engine last: none counts as started before it can answer."""
    engine_port, admin_port, proxy_port, proxy_admin, port, metrics, engine_metrics = free_ports(7)
    engine, proxy, gateway = (unit_of(name, folder) for name in SERVICES)
    with ExitStack() as stack:
        gateway_process, told_by_gateway = start(
            gateway, "gateway", folder, stack,
            variables(UNITS / "gateway.env.example")
            | {
                "RHIZOME_GATEWAY_PORT": str(port),
                "RHIZOME_GATEWAY_METRICS_PORT": str(metrics),
                "RHIZOME_GATEWAY_ENGINE": f"127.0.0.1:{proxy_port}",
            },
        )  # fmt: skip
        proxy_process, told_by_proxy = start(
            proxy, "proxy", folder, stack,
            variables(UNITS / "proxy.env.example")
            | {
                "RHIZOME_PROXY_BACKENDS": f"127.0.0.1:{engine_port}",
                "RHIZOME_PROXY_PORT": str(proxy_port),
                "RHIZOME_PROXY_ADMIN_PORT": str(proxy_admin),
                "RHIZOME_PROXY_POLL_TIMEOUT_S": "10",  # a busy machine
            },
        )  # fmt: skip
        told = "STATUS=0 of 1 backends are ready"
        proxy_process.wait_until(lambda: told_by_proxy.hears(told), told)
        told = f"STATUS=no engine answers at 127.0.0.1:{proxy_port}"
        gateway_process.wait_until(lambda: told_by_gateway.hears(told), told)
        assert not told_by_proxy.hears("READY=1") and not told_by_gateway.hears("READY=1")

        engine_process, told_by_engine = start(
            engine, "engine", folder, stack,
            variables(UNITS / "engine.env.example")
            | {
                "RHIZOME_ENGINE_MODEL": str(DEMO_MODEL),
                "RHIZOME_ENGINE_PORT": str(engine_port),
                "RHIZOME_ENGINE_ADMIN_PORT": str(admin_port),
                "RHIZOME_ENGINE_METRICS_PORT": str(engine_metrics),
                "RHIZOME_ENGINE_DEVICE": "cpu",
                "RHIZOME_ENGINE_KERNELS": "torch",  # nothing is compiled into the empty cache
                "RHIZOME_ENGINE_MAX_CACHE_TOKENS": "4096",
            },
        )  # fmt: skip
        for process, manager in (
            (engine_process, told_by_engine),
            (proxy_process, told_by_proxy),
            (gateway_process, told_by_gateway),
        ):
            process.wait_until(lambda told=manager: told.hears("READY=1"), "READY=1", 90)
            assert manager.hears("WATCHDOG=1"), manager.told
        assert told_by_engine.told.index("STATUS=loading rhizome-demo") < told_by_engine.told.index("READY=1")
        assert (folder / "run/rhizome/engine-a.ipc").is_socket()
        body = {"model": "rhizome-demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        for _ in range(8):  # each on a connection of its own, so that every worker of the gateway has some
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=60, trust_env=False
            )
            assert answer.status_code == 200, answer.text
        assert httpx.get(f"http://127.0.0.1:{metrics}/metrics", trust_env=False).status_code == 200

        stop(gateway, gateway_process, told_by_gateway)
        stop(proxy, proxy_process, told_by_proxy)
        stop(engine, engine_process, told_by_engine)
    assert [path.name for path in (folder / "run/rhizome").iterdir() if path.is_socket()] == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (ENGINE, {"RHIZOME_ENGINE_MODEL": "/nowhere"}),
        (PROXY, {"RHIZOME_PROXY_BACKENDS": ""}),
        (GATEWAY, {"RHIZOME_GATEWAY_HOST": "0.0.0.0"}),
    ],
)
def test_what_cannot_serve_is_not_started_again(name: str, wrong: dict[str, str], folder: Path) -> None:
    unit = unit_of(name, folder)
    with ExitStack() as stack:
        process, manager = start(unit, "service", folder, stack, wrong)
        assert process.wait(60) in unit.exit_codes_that_stay, process.output
        assert not manager.hears("READY=1")


@pytest.mark.parametrize("name", SERVICES)
def test_a_unit_gives_the_drain_its_time(name: str, folder: Path) -> None:
    unit = unit_of(name, folder)
    (drain,) = [
        float(value) for key, value in unit.environment().items() if "DRAIN" in key or "GRACEFUL" in key
    ]
    assert float(unit.get("TimeoutStopSec")) >= drain + 10
    assert unit.get("TimeoutStartSec") == "infinity" or name == ENGINE
    assert unit.get("KillMode") == "mixed"


def test_the_engine_may_load_for_as_long_as_it_allows_itself(folder: Path) -> None:
    minutes = unit_of(ENGINE, folder).get("TimeoutStartSec").removesuffix("min")
    assert int(minutes) * 60 > EngineSettings.model_fields["load_timeout_s"].default


def test_folders_are_those_that_systemd_makes(folder: Path) -> None:
    for name in SERVICES:
        unit = unit_of(name, folder)
        made = ("RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve")
        assert [unit.get(key) for key in made] == ["rhizome", "0700", "yes"]
    engine = unit_of(ENGINE, folder)
    assert engine.environment()["XDG_CACHE_HOME"] == str(folder / "cache" / engine.get("CacheDirectory"))
    assert f"ipc://{folder}/run/rhizome/engine-a.ipc" in engine.get("ExecStart")


def test_what_is_compiled_for_a_gpu_goes_where_the_unit_may_write() -> None:
    """Triton's own choice is the home directory, and the user of the units has none."""
    drop_in = (UNITS / "rhizome-engine@.service.d/gpu.conf").read_text()
    (cache,) = re.findall(r"^Environment=TRITON_CACHE_DIR=%C/(.*)$", drop_in, re.MULTILINE)
    unit = (UNITS / ENGINE).read_text()
    assert f"CacheDirectory={Path(cache).parts[0]}\n" in unit
    assert "NoExecPaths" not in unit + drop_in, "it is loaded from there"


@pytest.mark.parametrize(
    "path", [*UNITS.glob("*.service"), *UNITS.glob("*.env.example")], ids=lambda p: p.name
)
def test_every_variable_is_a_setting(path: Path) -> None:
    """Also those that an example has commented out."""
    names = re.findall(r"^(?:#|Environment=)?(RHIZOME_\w+)=", path.read_text(), re.MULTILINE)
    assert names
    for name in names:
        prefix = re.match(r"RHIZOME_[A-Z]+_", name)[0]  # type: ignore[index]
        assert name.removeprefix(prefix).lower() in SETTINGS[prefix].model_fields, name


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as installed, but for the folder of the commands."""
    for path in [*UNITS.glob("*.service"), *UNITS.glob("*.target"), *UNITS.glob("*.slice")]:
        name = path.name.replace("@.", "@a.")
        (tmp_path / name).write_text(path.read_text().replace(INSTALLED, str(BIN)))
    return tmp_path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@needs_systemd
def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    done = analyze("verify", *installed.iterdir())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_systemd_would_find_something_wrong(installed: Path) -> None:
    unit = installed / "rhizome-proxy.service"
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=softly"))
    assert "Failed to parse kill mode" in analyze("verify", unit).stderr


@needs_systemd
@pytest.mark.parametrize("name", ["rhizome-engine@a.service", PROXY, GATEWAY])
def test_a_service_is_hardly_exposed(installed: Path, name: str) -> None:
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", installed / name)
    assert done.returncode == 0, done.stdout


@needs_systemd
def test_an_engine_with_a_gpu_is_hardly_more_exposed(installed: Path) -> None:
    shutil.copytree(UNITS / "rhizome-engine@.service.d", installed / "rhizome-engine@a.service.d")
    unit = installed / "rhizome-engine@a.service"
    assert analyze("verify", unit).stderr == ""
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSURE}", unit)
    assert done.returncode == 0 and "PrivateDevices" in done.stdout, done.stdout


@pytest.mark.skipif(
    shutil.which("systemd-sysusers") is None, reason="systemd-sysusers is missing: apt-get install systemd"
)
def test_the_user_of_the_units_is_made(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for name in ("passwd", "group"):
        (tmp_path / "etc" / name).write_text(
            "root:x:0:0::/root:/bin/sh\n" if name == "passwd" else "root:x:0:\n"
        )
    command = ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "rhizome.sysusers.conf")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert re.search(r"^rhizome:", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert re.search(r"^rhizome:", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    if os.geteuid() == 0:
        tmpfiles = [
            "systemd-tmpfiles",
            f"--root={tmp_path}",
            "--create",
            str(UNITS / "rhizome.tmpfiles.conf"),
        ]
        subprocess.run(tmpfiles, check=True, capture_output=True, timeout=60)
        assert (tmp_path / "etc/rhizome").stat().st_mode & 0o777 == 0o750
