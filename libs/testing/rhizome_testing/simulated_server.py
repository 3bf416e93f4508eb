"""One `rhizome simulate` server in a process of its own, which can be killed, frozen and started again."""

from __future__ import annotations

import http.client
import json
import signal
import sys
from pathlib import Path
from typing import Any, Self

from rhizome_testing.ports import free_ports
from rhizome_testing.processes import ProcessFixture

_START_S = 60.0
_ADMINISTRATION_S = 5.0


class SimulatedServer:
    """Keeps its port, whatever happens to the process behind it.

    Args:
        kind: of `rhizome simulate --kind`.
        folder: for logs.
        options: further options of the command.
        name: of the log; the kind and the port unless told otherwise.

    Attributes:
        port: where it serves.
    """

    def __init__(self, kind: str, folder: Path, *options: str, name: str = "") -> None:
        self.kind = kind
        (self.port,) = free_ports(1)
        self.name = name or f"{kind}-{self.port}"
        self._folder = folder
        self._options = options
        self._starts = 0
        self._admin_port = 0
        self._process: ProcessFixture | None = None
        self.start()

    @property
    def address(self) -> str:
        """What a proxy is told: `host:port` for the kind `rhizome`, a URL for all others."""
        return f"{'' if self.kind == 'rhizome' else 'http://'}127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start a process that is not there; it serves a moment later, see `wait_serving`."""
        if self.running:
            return
        self._starts += 1
        self._process = ProcessFixture(
            [
                *(sys.executable, "-m", "rhizome_launcher", "simulate"),
                *("--kind", self.kind, "--port", str(self.port), *self._options),
            ],
            log=self._folder / f"{self.name}-{self._starts}.log",
            name=self.name,
        )

    def wait_serving(self) -> None:
        """Wait until it answers.

        Raises:
            ProcessFailedError: it does not.
        """
        assert self._process is not None
        if self.kind == "rhizome":
            self._admin_port = int(self._process.wait_for_line(r"admin http://[^:]+:(\d+)", _START_S)[1])
        else:
            self._process.wait_for_line(r"^\S+ http://", _START_S)
            self._admin_port = self.port

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        assert self._process is not None
        self._process.signal(signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """SIGTERM, wait, and start again."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """End the process, frozen or not."""
        if self._process is None or not self._process.running:
            return
        self._process.signal(signal.SIGCONT)
        self._process.terminate()

    def fault(self, **changes: Any) -> None:
        """Let requests fail; see docs/simulator.md."""
        self._administer("POST", changes)

    def heal(self) -> None:
        """End all faults."""
        self._administer("DELETE", None)

    def state(self) -> dict[str, Any]:
        """Faults and figures."""
        return self._administer("GET", None)

    def _administer(self, method: str, body: dict[str, Any] | None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._admin_port, timeout=_ADMINISTRATION_S)
        try:
            connection.request(method, "/simulate", None if body is None else json.dumps(body))
            answer = connection.getresponse()
            told: dict[str, Any] = json.loads(answer.read())
            if answer.status != 200:
                raise ValueError(f"{self.name} refuses {body}: {told}")
            return told
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()  # it has nothing to finish
