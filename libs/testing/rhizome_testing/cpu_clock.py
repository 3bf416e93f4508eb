"""Processor time of another process, finely."""

from __future__ import annotations

import time

import psutil


def cpu_seconds(pid: int) -> float:
    """Processor time of a process with all its threads, in seconds.

    /proc tells it in hundredths of a second, which is a twentieth of what five seconds of a light load take.
    On Linux every process has a clock besides, which counts nanoseconds; its number is made of the process's
    as `clock_getcpuclockid(3)` makes it.

    Args:
        pid: of a process that runs.

    Raises:
        psutil.NoSuchProcess: it does not.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
