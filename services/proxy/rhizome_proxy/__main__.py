"""`rhizome-proxy`.

Exit codes: 0 after SIGTERM or Ctrl-C, 1 when it could not listen or cut requests off, 2 for wrong settings,
130 after a second Ctrl-C, which does not wait.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys

import uvloop

from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import PROGRAM, ProxySettings, parse_settings
from rhizome_telemetry.log_level import LevelSwitch
from rhizome_telemetry.logs import configure_logging
from rhizome_telemetry.sd_notify import ServiceManager
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing

_log = logging.getLogger(PROGRAM)

_INTERRUPTED = 130


async def run(settings: ProxySettings) -> int:
    """Serve until SIGTERM or SIGINT, and stop at once at the next SIGINT; returns the exit code."""
    stop, stop_now = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, lambda: (stop_now if stop.is_set() else stop).set())
    server = ProxyServer(settings)
    try:
        await server.start()
    except OSError as error:
        _log.error("%s", error)
        await server.stop(0.0)
        return 1
    gc.freeze()  # what was made so far stays; collections need not look at it again
    manager = ServiceManager()
    manager.follow(server.serving, server.status)
    await stop.wait()
    manager.stopping()
    _log.info("stopping; open requests have %g s", settings.drain_timeout_s)
    stopping, hurried = asyncio.ensure_future(server.stop()), asyncio.ensure_future(stop_now.wait())
    await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not stopping.done():
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        await server.stop(0.0)
        return _INTERRUPTED
    if not stopping.result():
        _log.warning("requests were cut off after %g s", settings.drain_timeout_s)
        return 1
    return 0


def main() -> None:
    """Entry point of the command."""
    settings = parse_settings()
    configure_logging(PROGRAM, settings.log_level, settings.log_format)
    LevelSwitch(settings.log_level).install()
    configure_tracing(PROGRAM)
    try:
        code = uvloop.run(run(settings))
    finally:
        shutdown_tracing()
    sys.exit(code)


if __name__ == "__main__":
    main()
