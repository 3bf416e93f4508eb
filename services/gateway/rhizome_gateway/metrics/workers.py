"""Numbers of several worker processes as one: `prometheus_client` keeps them in files that all can read.

Whoever starts workers does it inside `shared_counts`; the variable that it sets is read when a worker imports
`prometheus_client`, so workers have to be started anew (spawn), as uvicorn does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from prometheus_client.multiprocess import mark_process_dead

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@contextmanager
def shared_counts() -> Iterator[Path]:
    """A folder for the numbers of the workers that are started meanwhile; removed at the end."""
    before = os.environ.get(_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="rhizome-gateway-metrics-", ignore_cleanup_errors=True) as folder:
        os.environ[_VARIABLE] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before


def shared_folder() -> Path | None:
    """Where this worker shares its numbers; None for a process of its own."""
    folder = os.environ.get(_VARIABLE)
    return Path(folder) if folder else None


def forget_dead_workers(folder: Path) -> None:
    """Drop what dead workers said about the present; what they counted stays."""
    for path in folder.glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
