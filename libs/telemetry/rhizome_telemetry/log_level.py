"""The level of the log while the process runs: `kill -USR1` for DEBUG, `kill -USR2` for the configured one.

A signal needs no port and no key, and only who may stop the process anyway may send one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

LEVEL_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""More, and as configured."""


class LevelSwitch:
    """Changes the level on a signal.

    Args:
        level: the configured one.
        on_change: told the signal, for processes that this one is responsible for; runs in the handler.
    """

    def __init__(self, level: str, on_change: Callable[[signal.Signals], None] | None = None) -> None:
        self._level = logging.getLevelNamesMapping()[level.upper()]
        self._on_change = on_change

    def install(self) -> None:
        """Listen, from now on; only the main thread can."""
        for number in LEVEL_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        level = logging.DEBUG if number == signal.SIGUSR1 else self._level
        logging.getLogger().setLevel(level)
        _announce(level)
        if self._on_change is not None:
            self._on_change(signal.Signals(number))


def _announce(level: int) -> None:
    """Say so, past the buffer of stderr: the signal may have come in the middle of a write to it."""
    text, names = "the log level is %s now", (logging.getLevelName(level),)
    record = logging.LogRecord(__name__, logging.INFO, __file__, 0, text, names, None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            os.write(sys.stderr.fileno(), f"{handler.format(record)}\n".encode())
