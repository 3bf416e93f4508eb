"""A real gateway in a process of its own."""

from __future__ import annotations

import itertools
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

from rhizome_testing.ports import free_port
from rhizome_testing.processes import ProcessFixture

_numbers = itertools.count(1)
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class GatewayProcess(ProcessFixture):
    """`python -m rhizome_gateway` on a free port of loopback.

    Args:
        engine: where its engine is.
        log_dir: for its log.
        *arguments: more of its command line.
        environment: added to this process's own.
    """

    def __init__(
        self, engine: str, log_dir: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = free_port()
        name = f"gateway-{next(_numbers)}"
        command = [
            *(sys.executable, "-m", "rhizome_gateway", "--port", str(self.port), "--engine", engine),
            *("--model-refresh-s", "0.2", *arguments),
        ]
        super().__init__(command, log=log_dir / f"{name}.log", name=name, environment=environment)

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def rss_bytes(self) -> int:
        """Memory that is resident now, of this process without its children."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until it knows what its engine serves.

        Raises:
            ProcessFailedError: it does not.
        """
        self.wait_until(self._is_ready, "/ready says 200", timeout_s)

    def _is_ready(self) -> bool:
        try:
            with _DIRECT.open(f"{self.url}/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
