"""`rhizome-proxy`.

Exit codes: 0 after SIGTERM or Ctrl-C, 1 when it could not listen or cut requests off, 2 for wrong settings.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvloop

from rhizome_proxy.server import ProxyServer
from rhizome_proxy.settings import PROGRAM, ProxySettings, parse_settings
from rhizome_telemetry.logs import configure_logging
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing

_log = logging.getLogger(PROGRAM)


async def run(settings: ProxySettings) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = ProxyServer(settings)
    try:
        await server.start()
    except OSError as error:
        _log.error("%s", error)
        await server.stop(0.0)
        return 1
    await stop.wait()
    _log.info("stopping; open requests have %g s", settings.drain_timeout_s)
    if not await server.stop():
        _log.warning("requests were cut off after %g s", settings.drain_timeout_s)
        return 1
    return 0


def main() -> None:
    """Entry point of the command."""
    settings = parse_settings()
    configure_logging(PROGRAM, settings.log_level)
    configure_tracing(PROGRAM)
    try:
        code = uvloop.run(run(settings))
    finally:
        shutdown_tracing()
    sys.exit(code)


if __name__ == "__main__":
    main()
