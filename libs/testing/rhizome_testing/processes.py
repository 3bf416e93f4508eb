"""Real processes for tests: started, watched and always ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_POLL_S = 0.02
_KILL_AFTER_S = 30.0


class ProcessFailedError(AssertionError):
    """A process died or did not do in time what was waited for; the message ends with its last log lines."""


class ProcessFixture:
    """One child process whose output goes to a file.

    Args:
        arguments: command line; `module` makes it `python -m rhizome_x ...`.
        log: file for stdout and stderr together.
        environment: added to this process's own.
        name: for messages.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        name: str = "",
    ) -> None:
        self.name = name or Path(arguments[0]).name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )
        self._family: dict[int, psutil.Process] = {}

    @classmethod
    def module(
        cls,
        module: str,
        arguments: Sequence[str] = (),
        *,
        log_dir: Path,
        environment: Mapping[str, str] | None = None,
        name: str = "",
    ) -> Self:
        """Start `python -m module` with this interpreter; the log is `log_dir/name.log`."""
        label = name or module
        return cls(
            [sys.executable, "-m", module, *arguments],
            log=log_dir / f"{label}.log",
            environment=environment,
            name=label,
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not exited."""
        return self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit status; `None` while it runs, negative for a signal."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """Everything it wrote so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def children(self) -> list[psutil.Process]:
        """Its descendants that run now."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._family.update({child.pid: child for child in found})
        return found

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Poll until `condition` holds.

        Raises:
            ProcessFailedError: the process exited, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if not self.running and not condition():  # it may have done it and exited in between
                raise self._failure(f"exited with {self.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self._failure(f"did not reach this within {timeout_s:g} s: {what}")
            time.sleep(_POLL_S)

    def wait_for_line(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        """Wait for output that matches a regular expression.

        Raises:
            ProcessFailedError: it did not come.
        """
        expression = re.compile(pattern, re.MULTILINE)
        self.wait_until(lambda: bool(expression.search(self.output)), f"output like {pattern!r}", timeout_s)
        match = expression.search(self.output)
        assert match is not None
        return match

    def wait_for_port(self, port: int, host: str = "127.0.0.1", timeout_s: float = 60.0) -> None:
        """Wait until somebody accepts TCP connections there.

        Raises:
            ProcessFailedError: nobody did.
        """
        self.wait_until(lambda: _accepts(host, port), f"{host}:{port} accepts connections", timeout_s)

    def wait_for_health(self, target: str, service: str = "", timeout_s: float = 60.0) -> None:
        """Wait until grpc.health.v1 at `target` says SERVING.

        Raises:
            ProcessFailedError: it did not.
        """
        from rhizome_transport.probe import SERVING, probe

        def serving() -> bool:
            return probe(target, service, timeout_s=1.0)[0] == SERVING

        self.wait_until(serving, f"{service or 'process'} at {target} is SERVING", timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process only."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the exit.

        Raises:
            ProcessFailedError: it goes on.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not exit within {timeout_s:g} s") from None

    def terminate(self, timeout_s: float = _KILL_AFTER_S) -> int:
        """End it politely, then by force, with all its descendants.

        Returns:
            The exit status.
        """
        self.children()
        if self.running:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.children()
                self._process.kill()
                self._process.wait()
        for orphan in self.orphans():
            orphan.kill()
        return self._process.returncode

    def orphans(self) -> list[psutil.Process]:
        """Descendants seen by `children` that outlived it; zombies do not count."""
        return [one for one in self._family.values() if _alive(one)]

    def assert_no_orphan(self, timeout_s: float = 20.0) -> None:
        """Fail when a descendant that `children` has seen is still there after a while."""
        deadline = time.monotonic() + timeout_s
        while self.orphans() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        left = [f"{one.pid} {' '.join(one.cmdline())}" for one in self.orphans()]
        if left:
            raise self._failure(f"left processes behind: {left}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def _failure(self, text: str) -> ProcessFailedError:
        tail = "\n".join(self.output.splitlines()[-30:])
        return ProcessFailedError(
            f"{self.name} (pid {self.pid}) {text}; its log {self.log} ends with\n{tail}"
        )


def _accepts(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(0.5)
        return attempt.connect_ex((host, port)) == 0


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
