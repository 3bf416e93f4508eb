"""The units under a real systemd, with all that it forbids them: as root, in namespaces, for the asking.

`RHIZOME_SYSTEMD=machine pytest tests/deploy/test_systemd_machine.py` takes some minutes, because the engine
compiles its kernels into an empty cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = ["rhizome-engine@a", "rhizome-proxy", "rhizome-gateway"]
NEEDED = ("/usr/lib/systemd/systemd", "unshare", "nsenter", "ip")
ASK = """
import json, sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:8000/v1/chat/completions", sys.argv[1].encode(),
                                 {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"])
"""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        os.environ.get("RHIZOME_SYSTEMD") != "machine", reason="RHIZOME_SYSTEMD=machine runs it"
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a systemd"),
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDED)),
        reason=f"apt-get install systemd util-linux iproute2, for {NEEDED}",
    ),
]


class Machine:
    """A systemd with Rhizome installed and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = [str(ROOT / "tests/deploy/systemd_machine.sh"), str(folder), str(ROOT), sys.prefix]
        (folder / "scratch").mkdir()
        with (folder / "console.log").open("wb") as console:
            self._unshare = subprocess.Popen(["bash", *script], stdout=console, stderr=console)
        self.wait_until(lambda: self.run("systemctl", "is-active", "machine.target").stdout == "active\n", 60)

    def run(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine."""
        inside = psutil.Process(self._unshare.pid).children()
        if not inside:
            return subprocess.CompletedProcess(command, 1, "", "there is no machine yet")
        enter = ["nsenter", "--target", str(inside[0].pid), "--all", "--", *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=timeout_s, check=False)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--property", name, "--value", unit).stdout.strip()

    def ask(self, **options: object) -> str:
        """What the model answers."""
        body = {"model": "rhizome-demo", "temperature": 0, **options}
        python = ["env", "LD_LIBRARY_PATH=/opt/python/lib", "/opt/rhizome/bin/python3"]
        done = self.run(*python, "-c", ASK, json.dumps(body))
        assert done.returncode == 0, done.stderr + self.log()
        return done.stdout.strip()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self._unshare.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def log(self) -> str:
        """What everybody wrote."""
        logs = self.run("sh", "-c", f"tail -n 20 {self.folder}/scratch/logs/*").stdout
        return (self.folder / "console.log").read_text() + logs

    def end(self) -> None:
        inside = psutil.Process(self._unshare.pid).children()
        self._unshare.kill()  # and with it everything inside
        self._unshare.wait()
        psutil.wait_procs(inside, timeout=30)
        for hierarchy in ("unified", "systemd", "."):
            group = Path("/sys/fs/cgroup", hierarchy, self.folder.name)
            for path in [*sorted(group.rglob("*/"), reverse=True), group] if group.exists() else []:
                path.rmdir()


@pytest.fixture
def machine() -> Iterator[Machine]:
    with tempfile.TemporaryDirectory(prefix="machine-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        one = Machine(Path(name))
        try:
            yield one
        finally:
            one.end()


def test_the_units_work_under_systemd(machine: Machine) -> None:
    started = machine.run("systemctl", "enable", "--now", "rhizome.target", *UNITS, timeout_s=600)
    assert started.returncode == 0, started.stderr + machine.log()
    assert [machine.show(unit, "StatusText") for unit in UNITS] == [
        "serving rhizome-demo", "1 of 1 backends are ready", "serving rhizome-demo",
    ]  # fmt: skip
    users = machine.run(
        "ps", "-o", "user=", *(machine.show(unit, "MainPID") for unit in UNITS)
    ).stdout.split()
    assert users == ["rhizome"] * 3
    assert machine.run("find", "/var/cache/rhizome", "-name", "*.so").stdout, "compiled kernels"

    capital = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in machine.ask(messages=capital)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": False}}
    assert machine.ask(messages=capital, response_format=form, max_tokens=20).startswith("{")

    machine.run("kill", "-KILL", machine.show("rhizome-proxy", "MainPID"))
    machine.wait_until(lambda: machine.show("rhizome-proxy", "NRestarts") == "1", 60)
    machine.wait_until(lambda: machine.show("rhizome-proxy", "ActiveState") == "active", 60)
    machine.wait_until(lambda: machine.show("rhizome-gateway", "StatusText") == "serving rhizome-demo", 60)
    assert "Paris" in machine.ask(messages=capital)

    assert machine.run("systemctl", "stop", "rhizome.target", timeout_s=120).returncode == 0
    machine.wait_until(lambda: {machine.show(unit, "ActiveState") for unit in UNITS} == {"inactive"}, 60)
    assert {machine.show(unit, "Result") for unit in UNITS} == {"success"}
    assert machine.run("find", "/run/rhizome", "-type", "s").stdout == ""

    machine.run(
        "sed", "-i", "s|^RHIZOME_ENGINE_MODEL=.*|RHIZOME_ENGINE_MODEL=/nowhere|", "/etc/rhizome/engine-a.env"
    )
    assert machine.run("systemctl", "start", "rhizome-engine@a").returncode == 1
    assert machine.show("rhizome-engine@a", "ActiveState") == "failed"
    assert machine.show("rhizome-engine@a", "ExecMainStatus") == "2"
