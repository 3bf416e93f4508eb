"""A core's pulse: how a front sees that its core makes progress, without asking it.

A core that computes cannot answer, and one that is stuck never will. So the core counts what it does in a few
bytes of shared memory beside its socket, and whoever wonders reads them:

    rounds     the loop went round
    layers     one layer of the model was computed, for the step under way
    steps      steps that were computed to their end
    runnable   whether another step could be computed when the loop last went round

A step may therefore take as long as it likes while its layers go by: a huge prompt on a slow machine is no
wedge. One layer that never ends is.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_LAYOUT = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Pulse:
    """What was counted so far.

    Attributes:
        rounds: of the loop.
        layers: computed.
        steps: computed to their end.
        runnable: whether another one could be computed when the loop last went round.
    """

    rounds: int
    layers: int
    steps: int
    runnable: bool


def pulse_path(endpoint: str) -> Path:
    """Where the pulse of the core on an ipc endpoint lies."""
    return Path(endpoint.removeprefix("ipc://") + ".pulse")


def read_pulse(endpoint: str) -> Pulse | None:
    """The pulse of the core on an endpoint; None where there is none."""
    try:
        rounds, layers, steps, runnable = _LAYOUT.unpack(pulse_path(endpoint).read_bytes())
    except (OSError, struct.error):
        return None
    return Pulse(rounds, layers, steps, bool(runnable))


class PulseWriter:
    """Counts for the core of this process.

    Args:
        endpoint: its ipc endpoint, whose folder is private.
    """

    def __init__(self, endpoint: str) -> None:
        self._rounds = self._layers = self._steps = self._runnable = 0
        path = pulse_path(endpoint)
        path.unlink(missing_ok=True)  # of a core that was killed
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _LAYOUT.size)
            self._memory = mmap.mmap(descriptor, _LAYOUT.size)
        finally:
            os.close(descriptor)

    def went_round(self, steps: int, *, runnable: bool) -> None:
        """The core's loop begins anew.

        Args:
            steps: computed since the start.
            runnable: whether another one could be computed now.
        """
        self._rounds += 1
        self._steps, self._runnable = steps, int(runnable)
        self._write()

    def layer_done(self) -> None:
        """A layer was computed; safe from any thread, also after `close`."""
        self._layers += 1
        self._write()

    def _write(self) -> None:
        if not self._memory.closed:
            _LAYOUT.pack_into(self._memory, 0, self._rounds, self._layers, self._steps, self._runnable)

    def close(self) -> None:
        """Let go of the memory; the file is removed with the core's record."""
        self._memory.close()
