"""One child process of a local stack: started, watched, logged, stopped."""

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

PR_SET_PDEATHSIG = 1
LOG_TAIL_BYTES = 4000


class ServiceProcess:
    """A service of the stack as a child process.

    The child gets a session of its own, so that Ctrl-C in a terminal reaches the launcher alone, which then
    stops the services in order. On Linux the child also gets SIGTERM when the launcher dies in any other way.
    Its output goes to `log_path`, and line by line to `on_line` where one is given.
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
    ) -> None:
        self.name = name
        self.module = module
        self.arguments = arguments
        self.log_path = log_path
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._on_line = on_line
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

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
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self.module,
            *self.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            env=self._environment,
        )
        self._reader = asyncio.create_task(self._copy_output(self._process))

    async def wait(self) -> int:
        """Return the exit code once the process has ended and its output is written."""
        assert self._process and self._reader
        await asyncio.wait({self._reader})
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> None:
        """End it: SIGTERM lets it drain, SIGKILL follows after `timeout_s` seconds."""
        if self._process is None or self._reader is None:
            return
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), timeout_s)
            except TimeoutError:
                self.kill()
        await asyncio.wait({self._reader}, timeout=1)

    def kill(self) -> None:
        """End it and the processes that it started at once."""
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self._process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        self._process.kill()

    def log_tail(self) -> str:
        """The end of its log, for an error message."""
        if not self.log_path.exists():
            return "(no output)"
        return self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip() or "(no output)"

    async def _copy_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        with self.log_path.open("wb", buffering=0) as log:
            while line := await _read_line(process.stdout):
                log.write(line)
                if self._on_line is not None:
                    self._on_line(self.name, line.decode(errors="replace").rstrip())


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Read a line, or as much of an over-long one as the buffer holds."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.readexactly(overrun.consumed)


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the launcher's thread that made this process ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
