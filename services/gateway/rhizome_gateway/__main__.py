"""`rhizome-gateway`: serve the API until SIGTERM or Ctrl-C."""

from __future__ import annotations

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

from rhizome_gateway.app import Gateway, engine_tls
from rhizome_gateway.auth.exposure import ExposureError, check_exposure
from rhizome_gateway.auth.keys_file import KeysFileError, read_keys
from rhizome_gateway.http.protocol import capped_protocol
from rhizome_gateway.metrics.listener import metrics_listener
from rhizome_gateway.settings import GatewaySettings
from rhizome_gateway.workers import WorkerPool
from rhizome_telemetry.logs import configure_logging
from rhizome_telemetry.tracing import configure_tracing, shutdown_tracing

_log = logging.getLogger(__name__)


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

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to shut down; a second Ctrl-C forces it.

        Who asks /ready now and then gets the time to see that it is off, before nobody answers any more.
        """
        self._gateway.drain()
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
        configure_logging("rhizome-gateway", settings.log_level)
    except (ValidationError, ValueError) as error:
        raise SystemExit(f"rhizome-gateway: {_problem(error)}") from None
    try:
        if settings.listen_fd is None:
            check_exposure(
                settings.host, has_keys=settings.keys_file is not None, allow_open=settings.allow_open
            )
            engine_tls(settings)  # wrong files are told once, and before anything listens
        if settings.workers > 1 and settings.listen_fd is None:
            _run_workers(settings, arguments)
            return
        gateway = Gateway(settings)
    except (ExposureError, KeysFileError, ValueError) as error:
        raise SystemExit(f"rhizome-gateway: {error}") from None
    configure_tracing("rhizome-gateway")
    _log.info("listening on http://%s:%d, engine at %s", settings.host, settings.port, settings.engine)
    # uvicorn raises the signal again once everything is done; a stop that was asked for is a success.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server = GatewayServer(gateway, settings)
        if settings.listen_fd is None:
            with metrics_listener(settings, gateway.metrics):
                server.run()
        else:
            server.run(sockets=[socket.socket(fileno=settings.listen_fd)])
    except OSError as error:
        raise SystemExit(f"rhizome-gateway: {error}") from None
    except KeyboardInterrupt:
        pass
    finally:
        shutdown_tracing()


def _run_workers(settings: GatewaySettings, arguments: Sequence[str]) -> None:
    if settings.keys_file is not None:
        read_keys(settings.keys_file)  # a broken file is told once, not by every worker
    try:
        WorkerPool(settings, arguments).run()
    except OSError as error:
        raise SystemExit(f"rhizome-gateway: {error}") from None


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        return f"{name}: {first['msg']}; see --help"
    return str(error)


if __name__ == "__main__":
    main()
