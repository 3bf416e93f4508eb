"""A Docker daemon for tests: the one that runs, or one of our own that ends with the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from rhizome_testing.processes import ProcessFixture

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("RHIZOME_DOCKER_ROOT") or REPOSITORY / ".run" / "docker")
"""Images and layers of a daemon of our own, which are kept: the next run builds what changed only."""


def answers(environment: Mapping[str, str]) -> bool:
    """Whether a daemon listens there."""
    done = subprocess.run(["docker", "version"], env=dict(environment), capture_output=True, check=False)
    return done.returncode == 0


@contextmanager
def docker_daemon(folder: Path) -> Iterator[dict[str, str]]:
    """Environment for `docker` and `docker-compose`; skips where no daemon can run.

    Args:
        folder: for what a daemon of our own needs while it runs; its path must be short, sockets are in it.
    """
    if shutil.which("docker") is None:
        pytest.skip("needs docker (Debian: docker.io)")
    environment = dict(os.environ)
    if answers(environment):
        yield environment
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs a Docker daemon, or root and dockerd to start one (Debian: docker.io, iptables)")
    DATA.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    environment["DOCKER_HOST"] = f"unix://{folder}/docker.sock"
    command = ["dockerd", "--data-root", str(DATA), "--exec-root", str(folder / "exec"), "--bridge", "none"]
    command += ["--pidfile", str(folder / "dockerd.pid"), "--host", environment["DOCKER_HOST"]]
    with ProcessFixture(command, log=folder / "dockerd.log", name="dockerd") as daemon:
        try:
            daemon.wait_until(lambda: answers(environment), "it answers", 120)
        except AssertionError as error:
            pytest.skip(f"no Docker daemon can run here: {error}")
        yield environment
