"""A real engine in processes of its own, on CPU with one thread."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil

from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture
from rhizome_transport.channel import ENGINE_SERVICE

_numbers = itertools.count(1)


class EngineProcess(ProcessFixture):
    """`python -m rhizome_engine` with an admin listener.

    Args:
        model: checkpoint directory.
        log_dir: for its log.
        *arguments: more of its command line.
        port: of its gRPC listener; a free one when absent.
        environment: added to this process's own.
    """

    def __init__(
        self,
        model: Path,
        log_dir: Path,
        *arguments: str,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        free = free_ports(2)
        self.port, self.admin_port = port or free[0], free[1]
        self.model = model
        name = f"engine-{next(_numbers)}"
        command = [
            *(sys.executable, "-m", "rhizome_engine", "--model", str(model)),
            *("--port", str(self.port), "--admin-port", str(self.admin_port)),
            *("--device", "cpu", "--num-threads", "1", "--max-cache-tokens", "8192", *arguments),
        ]
        super().__init__(command, log=log_dir / f"{name}.log", name=name, environment=environment)

    @property
    def target(self) -> str:
        """Where its EngineService is."""
        return f"127.0.0.1:{self.port}"

    @property
    def admin_target(self) -> str:
        """Where its EngineAdminService is."""
        return f"127.0.0.1:{self.admin_port}"

    def wait_serving(self, timeout_s: float = 90.0) -> None:
        """Wait until the model is loaded.

        Raises:
            ProcessFailedError: it was not.
        """
        self.wait_for_health(self.target, ENGINE_SERVICE, timeout_s)

    def core(self) -> psutil.Process:
        """The core that this front started.

        Raises:
            ProcessFailedError: there is none.
        """
        found: list[psutil.Process] = []

        def look() -> bool:
            found[:] = [one for one in self.children() if "rhizome_engine.core" in one.cmdline()]
            return bool(found)

        self.wait_until(look, "it has started a core")
        return found[0]
