"""`rhizome-gateway`: serve the API until SIGTERM or Ctrl-C.

Exit codes: 0 after SIGTERM or Ctrl-C, 1 when it could not listen or cut requests off, 2 for wrong settings,
130 after a second Ctrl-C, which does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from types import FrameType

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from rhizome_gateway.app import Gateway, engine_tls, engine_tokens
from rhizome_gateway.auth.exposure import ExposureError, check_exposure
from rhizome_gateway.auth.keys_file import KeysFileError, read_keys
from rhizome_gateway.engine_cores import engine_cores
from rhizome_gateway.http.protocol import capped_protocol
from rhizome_gateway.metrics.listener import metrics_listener
from rhizome_gateway.settings import GatewaySettings
from rhizome_gateway.workers import WorkerPool
from rhizome_telemetry.log_level import LevelSwitch
from rhizome_telemetry.logs import configure_logging
from rhizome_telemetry.sd_notify import ServiceManager
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing

_log = logging.getLogger(__name__)

_STOPPED, _FAILED, _WRONG_SETTINGS, _INTERRUPTED = 0, 1, 2, 130
_LOOK_AFTER_S = 0.05


class GatewayServer(uvicorn.Server):
    """uvicorn that turns readiness off first when it is told to stop, and stops cleanly.

    Args:
        gateway: the application.
        settings: the configuration.
    """

    def __init__(self, gateway: Gateway, settings: GatewaySettings) -> None:
        super().__init__(
            uvicorn.Config(
                gateway,
                host=settings.host,
                port=settings.port,
                http=capped_protocol(
                    settings.max_header_bytes, settings.header_timeout_s, settings.stalled_s
                ),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=settings.graceful_shutdown_s,
                timeout_keep_alive=settings.idle_timeout_s,
            )
        )
        self._gateway = gateway
        self._drain_delay_s = settings.drain_delay_s
        self._is_worker = settings.listen_fd is not None
        self._manager = ServiceManager()
        self._cut_off = False

    @property
    def status(self) -> int:
        """What the process ends with, once it served."""
        if self.force_exit:
            return _INTERRUPTED
        failed = self._cut_off or not (self.started or self.should_exit)
        return _FAILED if failed else _STOPPED

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and from then on tell the service manager how things are."""
        await super().startup(sockets)
        self._manager.follow(self._gateway.is_ready, self._gateway.status)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let open requests end, and see whether they did."""
        ending = asyncio.ensure_future(super().shutdown(sockets))
        # uvicorn begins to count a little later, and then cancels what is open.
        await asyncio.wait({ending}, timeout=(self.config.timeout_graceful_shutdown or 0) + _LOOK_AFTER_S)
        self._cut_off = not ending.done() and bool(self.server_state.tasks)
        await ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down; a second Ctrl-C forces it.

        Who asks /ready now and then gets the time to see that it is off, before nobody answers any more.
        """
        self._gateway.drain()
        if not self._is_worker:  # the parent speaks for all of them
            self._manager.stopping()
        delay_s, self._drain_delay_s = self._drain_delay_s, 0.0
        if delay_s:
            later = threading.Timer(delay_s, super().handle_exit, (sig, frame))
            later.daemon = True
            later.start()
        else:
            super().handle_exit(sig, frame)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        settings = CliApp.run(GatewaySettings, cli_args=arguments)
        configure_logging("rhizome-gateway", settings.log_level, settings.log_format)
        LevelSwitch(settings.log_level).install()
    except (ValidationError, ValueError) as error:
        raise _wrong_settings(_problem(error)) from None
    try:
        if settings.listen_fd is None:
            check_exposure(
                settings.host, has_keys=settings.keys_file is not None, allow_open=settings.allow_open
            )
            engine_tls(settings)  # wrong files are told once, and before anything listens
            engine_cores(settings)
            engine_tokens(settings)
        if settings.workers > 1 and settings.listen_fd is None:
            sys.exit(_run_workers(settings, arguments))
        gateway = Gateway(settings)
    except (ExposureError, KeysFileError, ValueError) as error:
        raise _wrong_settings(str(error)) from None
    configure_tracing("rhizome-gateway")
    _log.info("listening on http://%s:%d, engine at %s", settings.host, settings.port, settings.engine)
    server = GatewayServer(gateway, settings)
    # uvicorn raises the signals again once everything is done; the status says how that went.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(server.status))
    try:
        if settings.listen_fd is None:
            with metrics_listener(settings, gateway.metrics):
                server.run()
        else:
            server.run(sockets=[socket.socket(fileno=settings.listen_fd)])
    except OSError as error:
        raise SystemExit(f"rhizome-gateway: {error}") from None
    except SystemExit:
        if server.started:
            raise
        raise SystemExit(_FAILED) from None  # uvicorn has a status of its own for a port that is taken
    finally:
        shutdown_tracing()
    sys.exit(server.status)


def _run_workers(settings: GatewaySettings, arguments: Sequence[str]) -> int:
    if settings.keys_file is not None:
        read_keys(settings.keys_file)  # a broken file is told once, not by every worker
    try:
        return WorkerPool(settings, arguments).run()
    except OSError as error:
        raise SystemExit(f"rhizome-gateway: {error}") from None


def _wrong_settings(problem: str) -> SystemExit:
    """Starting it again would fail in the same way, which its status tells whoever would."""
    sys.stderr.write(f"rhizome-gateway: {problem}\n")
    return SystemExit(_WRONG_SETTINGS)


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        return f"{name}: {first['msg']}; see --help"
    return str(error)


if __name__ == "__main__":
    main()
