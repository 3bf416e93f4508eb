"""The stack of `deploy/compose` on a daemon: images built, brought up behind nginx with TLS, taken down."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.deploy.compose_files import COMPOSE
from tests.deploy.docker_daemon import DATA, REPOSITORY

from rhizome_testing.ports import free_ports

IMAGES = REPOSITORY / "deploy" / "images"
BUILT = os.environ.get("RHIZOME_COMPOSE_VERSION", "")
"""Version of images that are there already, where these are to be tested."""
VERSION = BUILT or "test"
FILES = ("compose.yaml", "compose.tls.yaml")
MODEL = "rhizome-demo"
_POLL_S = 0.5

only_for_the_asking = [
    pytest.mark.skipif(os.environ.get("RHIZOME_COMPOSE") != "1", reason="make test-compose runs it"),
    pytest.mark.timeout(5400),
]


def tell(text: str) -> None:
    """A figure for whoever runs this."""
    print(f"\n  {text}", end="", flush=True)


def build_images(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Build all images for CPUs, and their bases by debootstrap unless `BASE_IMAGE` names one.

    With bases of our own packages come from a folder of wheels, so that builds ask nobody.

    Returns:
        The environment that says which images to use.
    """
    used = {**environment, "VERSION": VERSION, "RHIZOME_VERSION": VERSION}
    if not used.get("BASE_IMAGE"):
        used["NGINX_IMAGE"] = used.get("NGINX_IMAGE") or "rhizome-base:nginx"
    if BUILT:
        return used
    if not used.get("BASE_IMAGE"):
        run([str(IMAGES / "make_base.sh"), str(folder)], used, 1800)
        used |= {"BASE_IMAGE": "rhizome-base:python", "BUILD_IMAGE": "rhizome-base:build"}
        if not used.get("WHEELS"):
            used["WHEELS"] = str(DATA.parent / "wheels")
            run([str(IMAGES / "wheelhouse.sh"), used["WHEELS"]], {**used, "PYTHON": sys.executable}, 1800)
    run([str(IMAGES / "build.sh"), "gateway", "proxy", "engine-cpu"], used, 3600)
    return used


class ComposeStack:
    """One project of compose.

    Args:
        environment: with the daemon and the images.
        folder: for certificates.
        files: of `deploy/compose`, or by whole paths, each on top of those before.
        name: of the project, beside this process's number.

    Attributes:
        environment: of `docker` and `docker-compose`.
        url: where nginx has the API.
        ca: what its certificate is believed by.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        folder: Path,
        files: Sequence[str | Path] = FILES,
        name: str = "test",
    ) -> None:
        self._files = [part for file in files for part in ("-f", str(COMPOSE / file))]
        gateway, tls, grpc = free_ports(3)
        run([str(COMPOSE / "make_certificates.sh"), str(folder)], environment, 60)
        self.ca = folder / "ca.pem"
        self.url = f"https://localhost:{tls}"
        self.environment = {
            **environment,
            "COMPOSE_PROJECT_NAME": f"rhizome-{name}-{os.getpid()}",
            "GATEWAY_PORT": str(gateway),
            "TLS_PORT": str(tls),
            "TLS_GRPC_PORT": str(grpc),
            "TLS_DIR": str(folder / "server"),
            "ENGINE_LOAD_TIME": "600s",  # machines that test have more to do
        }

    def compose(self, *arguments: str, timeout_s: float = 600) -> str:
        """Run docker-compose on the project; what it wrote."""
        return run(["docker-compose", *self._files, *arguments], self.environment, timeout_s)

    def docker(self, *arguments: str, timeout_s: float = 120) -> str:
        """Run docker; what it wrote."""
        return run(["docker", *arguments], self.environment, timeout_s).strip()

    @contextmanager
    def client(self) -> Iterator[openai.OpenAI]:
        """Who asks nginx over TLS, and asks once."""
        trust = ssl.create_default_context(cafile=str(self.ca))
        with httpx.Client(verify=trust, trust_env=False, timeout=300) as http:
            yield openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=http)

    def containers(self, service: str = "") -> list[dict[str, Any]]:
        """What the daemon knows of the project's containers, or of one service's, by number."""
        label = f"label=com.docker.compose.project={self.environment['COMPOSE_PROJECT_NAME']}"
        wanted = ["--filter", f"label=com.docker.compose.service={service}"] if service else []
        ids = self.docker("ps", "--all", "--quiet", "--filter", label, *wanted).split()
        found: list[dict[str, Any]] = json.loads(self.docker("inspect", *ids)) if ids else []
        return sorted(found, key=lambda one: str(one["Name"]))

    def healthy(self, service: str = "") -> bool:
        """Whether all that were asked say so."""
        found = self.containers(service)
        return all(one["State"].get("Health", {}).get("Status") == "healthy" for one in found)

    def figures(self, service: str) -> str:
        """What a service's `/metrics` says."""
        (container,) = self.containers(service)
        program = (
            "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
        )
        return self.docker("exec", container["Id"], "python", "-c", program)

    def ready_engines(self) -> int:
        """Engines that the proxy gives requests to."""
        lines = self.figures("proxy").splitlines()
        return sum(
            'state="ready"' in line and line.endswith(" 1.0")
            for line in lines
            if line.startswith("rhizome_proxy_backend_state{")
        )

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 300) -> float:
        """Poll; the seconds it took.

        Raises:
            TimeoutError: with the end of all logs.
        """
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > timeout_s:
                logs = self.compose("logs", "--tail", "20")
                raise TimeoutError(f"not within {timeout_s:g} s: {what}\n{logs}")
            time.sleep(_POLL_S)
        return time.monotonic() - began


def run(command: list[str], environment: Mapping[str, str], timeout_s: float) -> str:
    """Run to the end; stdout.

    Raises:
        AssertionError: it failed; with the end of what it wrote.
    """
    done = subprocess.run(
        command,
        env=dict(environment),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        told = (done.stdout + done.stderr)[-4000:]
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{told}")
    return done.stdout
