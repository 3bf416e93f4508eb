"""Whether a core that lives gets on with its work."""

from __future__ import annotations

import time
from collections.abc import Callable

from rhizome_engine.core_pulse import Pulse

_LONGEST_DOUBT_S = 10.0


class WedgeWatch:
    """Measures for how long a core has made no progress, by its pulse.

    There is none while its loop does not go round and no layer is computed, or while it goes round and round
    without a step although one could be computed.

    Only time in which this process ran itself is counted: after the machine slept, or the whole container was
    paused, the core gets its time as if nothing had been.

    Args:
        read: the core's pulse; None for no sign of life.
        limit_s: after so long the core is wedged; 0 for never.
        clock: monotonic seconds.

    Attributes:
        poll_s: how often to look.
        silent_s: seconds without progress at the last look.
    """

    def __init__(
        self,
        read: Callable[[], Pulse | None],
        limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.poll_s = min(1.0, limit_s / 10 or 1.0)
        self.silent_s = 0.0
        self._read = read
        self._limit_s = limit_s
        self._doubt_s = min(_LONGEST_DOUBT_S, limit_s / 2 or _LONGEST_DOUBT_S)
        self._clock = clock
        self._looked = clock()
        self._last: Pulse | None = None
        self._still_s = 0.0
        self._idling_s = 0.0

    @property
    def doubtful(self) -> bool:
        """Whether the silence is long enough to send requests elsewhere."""
        return self.silent_s >= self._doubt_s

    @property
    def wedged(self) -> bool:
        """Whether waiting longer is of no use."""
        return bool(self._limit_s) and self.silent_s >= self._limit_s

    def look(self) -> None:
        """Read the pulse again."""
        now, pulse, last = self._clock(), self._read(), self._last
        passed_s = min(now - self._looked, 2 * self.poll_s)
        self._looked, self._last = now, pulse
        if pulse is None or last is None or (pulse.rounds, pulse.layers) == (last.rounds, last.layers):
            self._still_s += passed_s
        else:
            self._still_s = 0.0
            if pulse.steps != last.steps or not pulse.runnable:
                self._idling_s = 0.0
            elif pulse.rounds != last.rounds:  # not within one long step, whose layers are progress
                self._idling_s += passed_s
        self.silent_s = max(self._still_s, self._idling_s)
