"""Starts the core, notices when it dies or is stuck, starts it again, and stops it with the front.

front ── spawns ──▶ core            or, where a core already listens on the endpoint (the last front
└──── ZeroMQ ipc ───┘             was killed), the front adopts it and no model is loaded again
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from rhizome_engine.core_pulse import read_pulse
from rhizome_engine.core_record import clear_endpoint, read_core_record
from rhizome_engine.front.core_link import CoreLink, loading_error
from rhizome_engine.front.core_process import CoreProcess, adopt_core, spawn_core
from rhizome_engine.front.wedge_watch import WedgeWatch
from rhizome_engine.settings import EXIT_CANNOT_SERVE, EXIT_DEVICE_LOST, EXIT_RANK_LOST, EngineSettings
from rhizome_transport.errors import EngineError
from rhizome_transport.process_start import process_start, seconds_since

_log = logging.getLogger(__name__)

_FIRST_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 30.0
_STABLE_S = 60.0
_READY_POLL_S = 0.05
_LAST_WORDS_S = 0.5
"""What a stuck core gets to write down where it is stuck."""

RESTART_REASONS = (
    "crashed",
    "killed",
    "wedged",
    "device_lost",
    "rank_lost",
    "load_timeout",
    "ended",
    "unknown",
)
"""Why a core is started again; unknown where an adopted one ended, whose status went to its parent."""


class CoreFailedError(Exception):
    """The core cannot serve with these settings; its log says why."""


class CoreSupervisor:
    """Keeps one core running.

    Args:
        settings: the core's part is handed on to it.
        on_serving: called with True when the core serves, and with False while it is gone, or so silent that
            requests had better go elsewhere.

    Attributes:
        restarts: how often a core was started again, by reason.
        silent_s: seconds since the core last made progress.
    """

    def __init__(self, settings: EngineSettings, on_serving: Callable[[bool], None]) -> None:
        self._settings = settings
        self._on_serving = on_serving
        self._serving: CoreLink | None = None
        self._process: CoreProcess | None = None
        self._level_signal: signal.Signals | None = None
        self._killed_for = ""
        self._was_ready = False
        self.restarts: Counter[str] = Counter(dict.fromkeys(RESTART_REASONS, 0))
        self.silent_s = 0.0

    def link(self) -> CoreLink:
        """The link to the serving core.

        Raises:
            EngineError: UNAVAILABLE, because the core has no model loaded now.
        """
        if self._serving is None:
            raise loading_error()
        return self._serving

    async def run(self) -> None:
        """Start the core, and again whenever it ends, until cancelled; the core is left running then.

        Raises:
            CoreFailedError: it cannot serve with these settings.
        """
        back_off_s = _FIRST_BACK_OFF_S
        while True:
            started = time.monotonic()
            process = await adopt_core(self._settings) or await spawn_core(self._settings)
            self._process = process
            link = CoreLink(self._settings.core_endpoint)
            self._killed_for = ""
            try:
                status = await self._follow(process, link)
            finally:
                self._serving = None
                self.silent_s = 0.0
                self._on_serving(False)
                await link.close()
            if status == EXIT_CANNOT_SERVE:
                raise CoreFailedError("the engine core cannot serve with these settings; see its log above")
            if time.monotonic() - started > _STABLE_S:
                back_off_s = _FIRST_BACK_OFF_S
            reason = self._killed_for or _reason(status)
            self.restarts[reason] += 1
            _log.error("core %s (status %s); starting it again in %.1f s", reason, status, back_off_s)
            if reason == "killed":
                _log.error(
                    "if nobody sent it signal %d, the kernel may have: see dmesg for oom", -(status or 0)
                )
            await asyncio.sleep(back_off_s)
            back_off_s = min(back_off_s * 2, _LONGEST_BACK_OFF_S)

    async def stop(self, timeout_s: float) -> None:
        """Ask the core to end, and make it end when it does not."""
        if self._process is not None:
            await self._process.stop(timeout_s)
            clear_endpoint(self._settings.core_endpoint)  # of one that could not do it itself

    def tell_level(self, number: signal.Signals) -> None:
        """Hand a signal that changes the level of the log on to the core; one that loads is told later.

        The core listens for it before it serves; until then, the signal would end it.
        """
        self._level_signal = number
        if self._serving is not None and self._process is not None:
            self._process.signal(number)

    async def _follow(self, process: CoreProcess, link: CoreLink) -> int | None:
        """Wait until the core is ready, then until it is gone; its exit status."""
        ended = asyncio.ensure_future(process.wait())
        ready = asyncio.ensure_future(self._until_ready(link))
        watching: asyncio.Future[None] | None = None
        try:
            await asyncio.wait(
                {ended, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=self._settings.load_timeout_s
            )
            if not ended.done() and not ready.done():
                _log.error("core has not loaded its model within %.0f s", self._settings.load_timeout_s)
                self._killed_for = "load_timeout"
                await process.stop(0.0)
            elif ready.done():
                ready.result()
                self._serving = link
                if self._level_signal is not None:
                    process.signal(self._level_signal)
                self._on_serving(True)
                watching = asyncio.ensure_future(self._watch(process, link))
            return await ended
        finally:
            tasks = [task for task in (ended, ready, watching) if task is not None]
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, process: CoreProcess, link: CoreLink) -> None:
        """Send requests elsewhere while the core makes no progress, and kill it when waiting is of no use."""
        watch = WedgeWatch(partial(read_pulse, link.endpoint), self._settings.wedge_timeout_s)
        doubted = False
        while not watch.wedged:
            await asyncio.sleep(watch.poll_s)
            watch.look()
            self.silent_s = watch.silent_s
            if watch.doubtful != doubted:
                doubted = watch.doubtful
                text = "has made no progress for %.1f s" if doubted else "makes progress again (%.1f s)"
                _log.warning(f"core {text}", watch.silent_s)
                self._on_serving(not doubted)
        _log.error(
            "core is wedged: no progress for %.1f s although it lives; killing it, after it has written down "
            "where every thread is",
            watch.silent_s,
        )
        self._killed_for = "wedged"
        process.signal(signal.SIGQUIT)
        await asyncio.sleep(_LAST_WORDS_S)
        process.signal(signal.SIGKILL)

    async def _until_ready(self, link: CoreLink) -> None:
        while True:
            record = read_core_record(link.endpoint)
            if record is not None and record.serving:
                with contextlib.suppress(EngineError):
                    info = await link.client.model_info()
                    _log.info("core serves %s (%s on %s)", info.model, info.weight_format, info.device)
                    if not self._was_ready:  # of a core that was started again it would say nothing
                        self._was_ready = True
                        age_s = seconds_since(process_start(os.getpid()))
                        _log.info("ready %.2f s after this process began", age_s)
                    return
            await asyncio.sleep(_READY_POLL_S)


def _reason(status: int | None) -> str:
    """Why a core ended that this front did not kill."""
    if status is None:
        return "unknown"
    if status < 0:
        return "killed"
    return {0: "ended", EXIT_DEVICE_LOST: "device_lost", EXIT_RANK_LOST: "rank_lost"}.get(status, "crashed")
