"""Starts the core, notices when it dies, starts it again, and stops it with the front.

front ── spawns ──▶ core            or, where a core already listens on the endpoint (the last front
└──── ZeroMQ ipc ───┘             was killed), the front adopts it and no model is loaded again
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from rhizome_engine.core_record import read_core_record
from rhizome_engine.front.core_link import CoreLink, loading_error
from rhizome_engine.front.core_process import CoreProcess, adopt_core, spawn_core
from rhizome_engine.settings import EXIT_CANNOT_SERVE, EngineSettings
from rhizome_transport.errors import EngineError

_log = logging.getLogger(__name__)

_FIRST_BACK_OFF_S = 0.5
_LONGEST_BACK_OFF_S = 30.0
_STABLE_S = 60.0
_READY_POLL_S = 0.05


class CoreFailedError(Exception):
    """The core cannot serve with these settings; its log says why."""


class CoreSupervisor:
    """Keeps one core running.

    Args:
        settings: the core's part is handed on to it.
        on_serving: called with True when the core has loaded its model and with False when it is gone.
    """

    def __init__(self, settings: EngineSettings, on_serving: Callable[[bool], None]) -> None:
        self._settings = settings
        self._on_serving = on_serving
        self._serving: CoreLink | None = None
        self._process: CoreProcess | None = None

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
            try:
                status = await self._follow(process, link)
            finally:
                self._serving = None
                self._on_serving(False)
                await link.close()
            if status == EXIT_CANNOT_SERVE:
                raise CoreFailedError("the engine core cannot serve with these settings; see its log above")
            if time.monotonic() - started > _STABLE_S:
                back_off_s = _FIRST_BACK_OFF_S
            _log.error("core ended with status %s; starting it again in %.1f s", status, back_off_s)
            await asyncio.sleep(back_off_s)
            back_off_s = min(back_off_s * 2, _LONGEST_BACK_OFF_S)

    async def stop(self, timeout_s: float) -> None:
        """Ask the core to end, and make it end when it does not."""
        if self._process is not None:
            await self._process.stop(timeout_s)

    async def _follow(self, process: CoreProcess, link: CoreLink) -> int | None:
        """Wait until the core is ready, then until it is gone; its exit status."""
        ended = asyncio.ensure_future(process.wait())
        ready = asyncio.ensure_future(self._until_ready(link))
        try:
            await asyncio.wait(
                {ended, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=self._settings.load_timeout_s
            )
            if not ended.done() and not ready.done():
                _log.error("core has not loaded its model within %.0f s", self._settings.load_timeout_s)
                await process.stop(0.0)
            elif ready.done():
                ready.result()
                self._serving = link
                self._on_serving(True)
            return await ended
        finally:
            for task in (ended, ready):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(ended, ready, return_exceptions=True)

    async def _until_ready(self, link: CoreLink) -> None:
        while True:
            record = read_core_record(link.endpoint)
            if record is not None and record.serving:
                with contextlib.suppress(EngineError):
                    info = await link.client.model_info()
                    _log.info("core serves %s (%s on %s)", info.model, info.weight_format, info.device)
                    return
            await asyncio.sleep(_READY_POLL_S)
