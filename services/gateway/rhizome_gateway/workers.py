"""Several processes that serve one port: started, watched, started again, stopped together.

The parent binds the socket, so that a port that is taken is noticed once, and hands it down; the kernel gives
each new connection to a worker that waits for one. Limits and metrics hold over all of them: their ledger and
counts are files that the workers share. The first worker that knows the model makes the gateway ready, for
all of them; a request that reaches one which does not know it yet waits there. The parent serves nothing.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from rhizome_gateway.auth.shared_ledger import create_ledger
from rhizome_gateway.metrics.instruments import GatewayMetrics
from rhizome_gateway.metrics.listener import metrics_listener
from rhizome_gateway.metrics.workers import shared_counts
from rhizome_gateway.settings import GatewaySettings
from rhizome_telemetry.log_level import LEVEL_SIGNALS, LevelSwitch
from rhizome_telemetry.sd_notify import ServiceManager

_log = logging.getLogger(__name__)

_BACKLOG = 2048
_POLL_S = 0.1
_FIRST_RESTART_S = 0.5
_LAST_RESTART_S = 30.0
_STEADY_S = 30.0
"""A worker that lived so long is started again without delay when it dies."""
_PR_SET_PDEATHSIG = 1


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


class WorkerPool:
    """Runs workers until SIGTERM or Ctrl-C; a second one kills them.

    Args:
        settings: of the gateway; `workers` says how many.
        arguments: the command line, which each worker gets again.
    """

    def __init__(self, settings: GatewaySettings, arguments: Sequence[str]) -> None:
        self._settings = settings
        self._arguments = list(arguments)
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._started: dict[int, float] = {}
        self._due = dict.fromkeys(range(settings.workers), 0.0)
        self._delay_s = dict.fromkeys(range(settings.workers), _FIRST_RESTART_S)
        self._signals = 0
        self._manager = ServiceManager()  # workers tell it when they are ready

    def run(self) -> int:
        """Serve; the exit status, see `__main__`.

        Raises:
            OSError: nothing can listen there.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        LevelSwitch(self._settings.log_level, self._tell_level).install()
        with ExitStack() as stack:
            listener = stack.enter_context(listen(self._settings.host, self._settings.port))
            stack.enter_context(shared_counts())
            stack.enter_context(metrics_listener(self._settings, GatewayMetrics()))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rhizome-gateway-"))
            ledger = Path(folder) / "ledger"
            create_ledger(ledger)
            environment = os.environ | {
                "RHIZOME_GATEWAY_LISTEN_FD": str(listener.fileno()),
                "RHIZOME_GATEWAY_SHARED_LEDGER": str(ledger),
                "RHIZOME_GATEWAY_ENGINE_SEEN": str(Path(folder) / "engine-seen"),
            }
            while not self._signals:
                self._start_missing(listener.fileno(), environment)
                self._manager.beat()
                time.sleep(_POLL_S)
            self._manager.stopping()
            return self._stop()

    def _start_missing(self, descriptor: int, environment: dict[str, str]) -> None:
        now = time.monotonic()
        for index, worker in list(self._workers.items()):
            if worker.poll() is not None:
                steady = now - self._started[index] > _STEADY_S
                delay_s = 0.0 if steady else self._delay_s[index]
                self._delay_s[index] = _FIRST_RESTART_S if steady else min(delay_s * 2, _LAST_RESTART_S)
                _log.error(
                    "worker %d ended with code %s; another one starts in %.1f s",
                    worker.pid,
                    worker.returncode,
                    delay_s,
                )
                self._due[index] = now + delay_s
                del self._workers[index]
        for index, due in self._due.items():
            if index not in self._workers and now >= due:
                self._started[index] = now
                self._workers[index] = subprocess.Popen(
                    [sys.executable, "-m", "rhizome_gateway", *self._arguments],
                    env=environment,
                    pass_fds=(descriptor,),
                    start_new_session=True,  # Ctrl-C in a terminal reaches the parent alone
                    preexec_fn=_prepare_worker,
                )

    def _stop(self) -> int:
        for worker in self._workers.values():
            worker.send_signal(signal.SIGTERM)
        while any(worker.poll() is None for worker in self._workers.values()):
            if self._signals > 1:
                for worker in self._workers.values():
                    worker.kill()
            self._manager.beat()
            time.sleep(_POLL_S)
        if self._signals > 1:
            return 130
        # A worker that had died before, by whatever, cut nothing off now.
        return int(any(worker.returncode == 1 for worker in self._workers.values()))

    def _tell_level(self, number: signal.Signals) -> None:
        for worker in list(self._workers.values()):
            worker.send_signal(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1


def _prepare_worker() -> None:
    """End with the parent; and until the worker listens to them, take no harm from its signals."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for number in LEVEL_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
