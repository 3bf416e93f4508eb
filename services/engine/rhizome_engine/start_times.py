"""What a start spends its time on, as a table in the log.

start: imports            1.93 s   52 %
start: weights            0.61 s   16 %  2.30 GiB at 3.77 GiB/s
start: ready after        3.71 s  100 %
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from rhizome_engine.memory_size import format_bytes


@dataclass(frozen=True, slots=True)
class StartStage:
    """One part of a start.

    Attributes:
        name: of what was done.
        seconds: that it took.
        num_bytes: that were read or made, 0 where that says nothing.
    """

    name: str
    seconds: float
    num_bytes: int = 0

    @property
    def remark(self) -> str:
        """Bytes and their rate, where there are any."""
        if not self.num_bytes:
            return ""
        rate = int(self.num_bytes / max(self.seconds, 1e-9))
        return f"{format_bytes(self.num_bytes)} at {format_bytes(rate)}/s"


class StartTimes:
    """Times the stages of a start.

    Args:
        before_s: what passed before this was made, since the process began: Python and its imports.
        clock: monotonic seconds.

    Attributes:
        stages: those that are over, in their order.
    """

    def __init__(self, before_s: float = 0.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last = clock()
        self.stages: list[StartStage] = []
        if before_s > 0:
            self.stages.append(StartStage("imports", before_s))

    def done(self, name: str, num_bytes: int = 0) -> None:
        """End a stage: everything since the last one ended.

        Args:
            name: of the stage; told twice, it becomes two lines.
            num_bytes: that it read or made, 0 where that says nothing.
        """
        now = self._clock()
        self.stages.append(StartStage(name, now - self._last, num_bytes))
        self._last = now

    def rows(self) -> list[str]:
        """The table, a line per stage; the last line is the sum."""
        total = sum(stage.seconds for stage in self.stages)
        return [_row(stage, total) for stage in (*self.stages, StartStage("ready after", total))]

    def log(self, logger: logging.Logger) -> None:
        """Write the table, a record per line: a log escapes line breaks."""
        for row in self.rows():
            logger.info("start: %s", row)


def _row(stage: StartStage, total_s: float) -> str:
    share = 100 * stage.seconds / max(total_s, 1e-9)
    return f"{stage.name:<12} {stage.seconds:8.2f} s {share:4.0f} %  {stage.remark}".rstrip()
