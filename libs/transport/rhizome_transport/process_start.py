"""When a process began, which tells it apart from a later one with the same id.

Since the system was started, where Linux tells that: the system's time of boot moves whenever its clock is
set, and with it all times since the epoch.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

import psutil

_FIELD: Final = 19
"""Of /proc/PID/stat behind the name: the start in ticks; proc(5) calls it the 22nd."""
_SLACK_S: Final = 1.0


def process_start(pid: int) -> float:
    """When a process began, in seconds of a clock that only `began_at` and `seconds_since` know.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    if sys.platform == "linux":
        try:
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
            return int(after_name.split()[_FIELD]) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            pass
    return float(psutil.Process(pid).create_time())


def began_at(pid: int, start: float) -> bool:
    """Whether the process of this id is the one that began at `start`.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    return abs(process_start(pid) - start) < _SLACK_S


def seconds_since(start: float) -> float:
    """Seconds that have passed since what `process_start` told."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()
    return max(0.0, now - start)
