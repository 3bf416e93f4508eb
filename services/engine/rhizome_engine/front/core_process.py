"""The core as an operating system process: spawned by this front, or left over by an earlier one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from typing import Protocol

import psutil

from rhizome_engine.core_record import read_core_record, record_path, settings_sha256
from rhizome_engine.settings import EngineSettings, core_arguments

_log = logging.getLogger(__name__)
_ADOPTED_POLL_S = 0.1


class CoreProcess(Protocol):
    """A running core."""

    async def wait(self) -> int | None:
        """Return when it has ended, with its exit status where that is known."""
        ...

    async def stop(self, timeout_s: float) -> None:
        """Ask it to end, kill it after `timeout_s`, and return when it has ended."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        ...


class SpawnedCore:
    """A child of this process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def wait(self) -> int | None:
        """Return its exit status when it has ended; negative for a signal."""
        return await self._process.wait()

    async def stop(self, timeout_s: float) -> None:
        """Send SIGTERM, SIGKILL after `timeout_s`, and reap it."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), timeout_s)
            except TimeoutError:
                self._process.kill()
        await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


class AdoptedCore:
    """A core that an earlier front started; it is nobody's child here, so it is watched by polling."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process

    async def wait(self) -> int | None:
        """Return when it has ended; its status went to its parent."""
        while _alive(self._process):  # noqa: ASYNC110 - not a child, so nothing announces its end
            await asyncio.sleep(_ADOPTED_POLL_S)
        return None

    async def stop(self, timeout_s: float) -> None:
        """Send SIGTERM, then SIGKILL after `timeout_s`."""
        try:
            self._process.terminate()
            try:
                await asyncio.wait_for(self.wait(), timeout_s)
            except TimeoutError:
                self._process.kill()
                await self.wait()
        except psutil.NoSuchProcess:
            return

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(number)


async def spawn_core(settings: EngineSettings) -> SpawnedCore:
    """Start a core in a session of its own, so that Ctrl-C reaches only the front, which then drains."""
    # A core that ended took a private folder with it.
    record_path(settings.core_endpoint).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "rhizome_engine.core",
        *core_arguments(settings),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    _log.info("core started as process %d on %s", process.pid, settings.core_endpoint)
    return SpawnedCore(process)


async def adopt_core(settings: EngineSettings) -> AdoptedCore | None:
    """The core that already listens on the endpoint, if it runs with the same settings; None otherwise.

    A core with other settings is stopped, because two cannot share an endpoint.
    """
    record = read_core_record(settings.core_endpoint)
    if record is None:
        return None
    try:
        core = AdoptedCore(psutil.Process(record.pid))
    except psutil.NoSuchProcess:
        return None
    if record.settings_sha256 != settings_sha256(settings):
        _log.warning("core %d on %s has other settings; stopping it", record.pid, settings.core_endpoint)
        await core.stop(5.0)
        return None
    _log.info("adopted core %d on %s", record.pid, settings.core_endpoint)
    return core


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
