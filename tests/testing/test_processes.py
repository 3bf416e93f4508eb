"""The fixture that runs real processes must itself be trusted."""

from __future__ import annotations

import signal
import sys

import pytest

from rhizome_testing.ports import free_port, free_ports
from rhizome_testing.processes import ProcessFailedError, ProcessFixture

SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"
PARENT = (
    "import subprocess, sys; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "print('child', child.pid, flush=True); child.wait()"
)


def python(code, tmp_path, **options):
    return ProcessFixture([sys.executable, "-c", code], log=tmp_path / "log.txt", **options)


def test_waits_for_a_line_and_terminates(tmp_path):
    with python(SLEEPER, tmp_path) as process:
        assert process.wait_for_line(r"^ready$").group() == "ready"
        assert process.running
    assert process.returncode == -signal.SIGTERM
    assert process.output == "ready\n"


def test_a_process_that_ignores_sigterm_is_killed(tmp_path):
    with python(STUBBORN, tmp_path) as process:
        process.wait_for_line("ready")
        assert process.terminate(timeout_s=0.2) == -signal.SIGKILL


def test_an_early_exit_is_reported_with_the_log(tmp_path):
    with (
        python("print('cannot load'); raise SystemExit(3)", tmp_path, name="engine") as process,
        pytest.raises(ProcessFailedError, match=r"engine .*exited with 3(.|\n)*cannot load"),
    ):
        process.wait_for_line("ready")


def test_a_wait_ends_with_its_deadline(tmp_path):
    with (
        python(SLEEPER, tmp_path) as process,
        pytest.raises(ProcessFailedError, match="did not reach this within"),
    ):
        process.wait_for_line("never", timeout_s=0.2)


def test_orphans_are_found_and_removed(tmp_path):
    with python(PARENT, tmp_path) as process:
        process.wait_for_line(r"child \d+")
        (child,) = process.children()
        process.signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(ProcessFailedError, match=f"left processes behind.*{child.pid}"):
            process.assert_no_orphan(timeout_s=0.1)
    process.assert_no_orphan()


def test_runs_modules_with_environment_and_waits_for_their_port(tmp_path):
    port = free_port()
    with ProcessFixture.module(
        "http.server",
        [str(port), "--bind", "127.0.0.1"],
        log_dir=tmp_path,
        environment={"RHIZOME_TEST": "1"},
        name="web",
    ) as process:
        process.wait_for_port(port)
        assert process.log == tmp_path / "web.log"


def test_free_ports_differ():
    assert len(set(free_ports(20))) == 20


def test_a_port_is_not_given_twice_before_its_process_has_bound_it():
    ports = [free_port() for _ in range(1_000)]
    assert len(set(ports)) == len(ports)
