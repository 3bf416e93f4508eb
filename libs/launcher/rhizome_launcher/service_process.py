"""One process of a local stack: started or adopted, watched, logged, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from rhizome_launcher.log_file import LogReader, tail

PR_SET_PDEATHSIG = 1
EXIT_UNKNOWN = -1000
"""Exit code of a process that was adopted: the kernel tells it to the parent alone."""
_POLL_S = 0.1


class ServiceProcess:
    """A service of the stack as a process.

    It gets a session of its own, so that Ctrl-C in a terminal reaches the launcher alone, which then stops
    the services in order. Its output goes straight to `log_path`, and line by line to `on_line` as well
    where one is given.

    Args:
        name: for people.
        module: what `python -m` runs.
        arguments: of its command line.
        log_path: written anew at the first start, unless it outlives.
        environment: added to this process's own.
        on_line: told its name and each line of its output.
        outlives: it stays when the launcher dies; otherwise it then gets SIGTERM, on Linux.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: list[str],
        *,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        on_line: Callable[[str, str], None] | None = None,
        outlives: bool = False,
    ) -> None:
        self.name = name
        self.module = module
        self.arguments = arguments
        self.log_path = log_path
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._on_line = on_line
        self._outlives = outlives
        self._process: asyncio.subprocess.Process | _Adopted | None = None
        self._showing: asyncio.Task[None] | None = None
        self._append = outlives

    @property
    def pid(self) -> int:
        """Process id, 0 before the start."""
        return self._process.pid if self._process else 0

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process else None

    async def start(self) -> None:
        """Start the process; whether it is ready is another question."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            if not self._append:
                log.truncate(0)
            self._append = True
            begin = log.seek(0, os.SEEK_END)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                *self.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" and not self._outlives else None,
                env=self._environment,
            )
        if self._on_line is not None:
            self._showing = asyncio.create_task(self._show(LogReader(self.log_path, begin)))

    def adopt(self, process: psutil.Process) -> None:
        """Take a process that an earlier launcher started and left behind."""
        self._process = _Adopted(process)

    async def wait(self) -> int:
        """Return the exit code once the process has ended and its output is shown."""
        assert self._process is not None
        code = await self._process.wait()
        if self._showing is not None:
            await asyncio.wait({self._showing})
        return code

    async def stop(self, timeout_s: float) -> None:
        """End it: SIGTERM lets it drain, SIGKILL follows after `timeout_s` seconds."""
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), timeout_s)
            except TimeoutError:
                self.kill()
        if self._showing is not None:
            await asyncio.wait({self._showing}, timeout=1)

    def kill(self) -> None:
        """End it and the processes that it started at once."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            self._process.kill()

    def log_tail(self) -> str:
        """The end of its log, for an error message."""
        return tail(self.log_path)

    async def _show(self, log: LogReader) -> None:
        assert self._on_line is not None and self._process is not None
        ended = asyncio.ensure_future(self._process.wait())
        while not ended.done():
            await asyncio.wait({ended}, timeout=_POLL_S)
            for line in log.remainder() if ended.done() else log.lines():
                self._on_line(self.name, line)


class _Adopted:
    """A process that is nobody's child here, with the interface of asyncio's."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return None if is_alive(self._process) else EXIT_UNKNOWN

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()

    async def wait(self) -> int:
        while is_alive(self._process):  # noqa: ASYNC110 - not a child, so nothing announces its end
            await asyncio.sleep(_POLL_S)
        return EXIT_UNKNOWN


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs still; nobody may have buried it yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the launcher's thread that made this process ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
